"""stook.io: (path, offset, length) as a source is the file of just those bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_io import TINY

import stook.io
from stook.errors import DecodeError

READERS = (stook.io.decode_jpeg, stook.io.jpeg_info)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard"
    path.write_bytes(b"x" * 700 + TINY + b"\xff\xd9" * 40)
    return path


def test_a_part_is_read_as_if_it_were_the_file(shard: Path) -> None:
    class Part(NamedTuple):
        file: Path
        offset: int
        length: int

    expected = stook.io.decode_jpeg(TINY)
    for source in (
        (shard, 700, len(TINY)),
        (str(shard), np.int64(700), np.uint8(len(TINY))),
        Part(shard, 700, len(TINY)),
    ):
        np.testing.assert_array_equal(stook.io.decode_jpeg(source), expected)
        assert stook.io.jpeg_info(source) == stook.io.jpeg_info(TINY)


def test_nothing_is_read_before_or_behind_the_part(shard: Path) -> None:
    # Behind it stand end-of-image markers, which must not complete an image that is cut.
    with pytest.raises(DecodeError) as caught:
        stook.io.decode_jpeg((shard, 700, len(TINY) - 1))
    assert str(caught.value).startswith(
        f"cannot decode {shard}[700:{700 + len(TINY) - 1}]: Premature end of"
    )
    with pytest.raises(DecodeError, match=r"\[699:.*Not a JPEG file: starts with 0x78 0xff"):
        stook.io.decode_jpeg((shard, 699, len(TINY)))
    with pytest.raises(DecodeError, match="Empty input file"):
        stook.io.decode_jpeg((shard, 700, 0))


def test_a_part_that_the_file_does_not_have(shard: Path, tmp_path: Path) -> None:
    size = shard.stat().st_size
    for read in READERS:
        for offset, there in ((700, size - 700), (size, 0), (size + 5, 0), (2**63 - 1, 0)):
            with pytest.raises(DecodeError) as caught:
                read((shard, offset, 2000))
            assert str(caught.value) == (
                f"cannot decode {shard}[{offset}:{offset + 2000}]: the file has {there} of these"
                " 2000 bytes; was it cut or replaced?"
            )
    stook.io.decode_jpeg((shard, 700, size - 700))  # to its very end
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(DecodeError, match="the file has 0 of these 9 bytes"):
        stook.io.decode_jpeg((empty, 0, 9))


def test_memory_is_taken_for_what_is_there_alone(shard: Path) -> None:
    with pytest.raises(DecodeError, match=f"has {len(TINY) + 80} of these {2**63 - 1} bytes"):
        stook.io.decode_jpeg((shard, 700, 2**63 - 1), allow_truncated=True)
    os.truncate(shard, 2**30 + 701)
    with pytest.raises(OSError, match="too large") as caught:
        stook.io.decode_jpeg((shard, 700, 2**30 + 1))
    assert caught.value.errno == errno.EFBIG


def test_parts_in_a_batch(shard: Path) -> None:
    good, cut, none = (shard, 700, len(TINY)), (shard, 700, len(TINY) - 1), (shard, 700, 2000)
    expected = stook.io.decode_jpeg(TINY)
    np.testing.assert_array_equal(
        stook.io.decode_batch([good, shard.read_bytes()[700:]], (2, 3)), [expected, expected]
    )
    np.testing.assert_array_equal(stook.io.decode_resized_crop(good, None, (2, 3)), expected)
    for source, message in ((cut, "Premature end"), (none, "of these 2000 bytes; was it cut")):
        with pytest.raises(DecodeError, match=message):
            stook.io.decode_resized_crop(source, None, (2, 3))


def test_what_is_no_part(shard: Path) -> None:
    for source, message in (
        ((), r"\(path, offset, length\); this tuple has 0 items"),
        ((shard, 3), "has 2 items"),
        ((shard, 3, 4, 5), "has 4 items"),
        ((3, 3, 4), "source must be a path .* not int"),
        ((shard, "3", 4), "the offset of source must be an int, not str"),
        ((shard, 3, None), "the length of source must be an int, not NoneType"),
        ((shard, 3, 4.0), "the length of source must be an int, not float"),
    ):
        with pytest.raises(TypeError, match=message):
            stook.io.decode_jpeg(source)  # type: ignore[arg-type]
    for source, message in (
        ((shard, -1, 4), "the offset of source must be from 0 to 2.*63 - 1, not -1"),
        ((shard, 2**63, 4), "not 9223372036854775808"),
        ((shard, 0, -(10**30)), "the length of source must be"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            stook.io.decode_jpeg(source)
        assert not isinstance(caught.value, DecodeError)


def test_a_part_of_what_has_no_places(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)  # so that opening does not wait
    try:
        with pytest.raises(OSError, match="seek") as caught:
            stook.io.decode_jpeg((pipe, 0, 10))
        assert caught.value.errno == errno.ESPIPE
        assert caught.value.filename == str(pipe)
    finally:
        os.close(writer)
    with pytest.raises(FileNotFoundError) as missing:
        stook.io.decode_jpeg((tmp_path / "missing", 0, 10))
    assert missing.value.filename == str(tmp_path / "missing")
