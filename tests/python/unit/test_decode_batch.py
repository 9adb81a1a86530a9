"""decode_batch: many images in one array; a bad one is an error for its own index alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from jpeg_cases import TINY, cjpeg, needs_tools, picture

import stook
from stook.errors import DecodeError
from stook.io import decode_batch, decode_resized_crop

BAD = b"GIF89a"


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return [cjpeg(picture(40 + 9 * i, 70 - 5 * i)) for i in range(5)]


@needs_tools
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_each_image_is_as_if_decoded_alone(
    jpegs: list[bytes], tmp_path: Path, layout: Any, mode: Any
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpegs[1])
    sources = [jpegs[0], path, bytearray(jpegs[2]), memoryview(jpegs[3]), str(path)]
    boxes = [(0, 0, 30, 20.5), None, (1, 2, 3, 4), None, (10, 10, 60, 40)]
    flips = [True, False, False, True, True]
    how: dict[str, Any] = {"mode": mode, "layout": layout, "dtype": "float32", "mean": 0.5}
    batch = decode_batch(sources, (24, 17), boxes=boxes, flip=flips, **how)
    assert batch.flags.c_contiguous and batch.flags.owndata and batch.dtype == np.float32
    assert len(batch) == 5
    for image, source, box, flip in zip(batch, sources, boxes, flips, strict=True):
        alone = decode_resized_crop(source, box, (24, 17), flip=flip, **how)
        np.testing.assert_array_equal(image, alone)


@needs_tools
def test_boxes_and_flips_as_arrays(jpegs: list[bytes]) -> None:
    boxes = np.array([[0, 0, 30, 20], [5, 5, 31, 32]], np.int64)
    flips = np.array([True, False])
    batch = decode_batch(jpegs[:2], (9, 8), boxes=boxes, flip=flips)
    for i in range(2):
        alone = decode_resized_crop(jpegs[i], boxes[i], (9, 8), flip=flips[i])
        np.testing.assert_array_equal(batch[i], alone)
    mirrored = decode_batch(tuple(jpegs), (9, 8), flip=True)
    np.testing.assert_array_equal(mirrored[:, :, ::-1], decode_batch(jpegs, (9, 8)))


def test_no_images() -> None:
    assert decode_batch([], (3, 4)).shape == (0, 3, 4, 3)
    assert decode_batch([], (3, 4), boxes=np.zeros((0, 4)), layout="CHW").shape == (0, 3, 3, 4)
    assert decode_batch([], (3, 4), out=np.zeros((0, 3, 4, 3), np.uint8)).shape[0] == 0


@needs_tools
def test_out_may_be_larger_than_the_batch(jpegs: list[bytes]) -> None:
    memory = np.full((12, 10, 16, 3), 7, np.uint8)
    out = memory[1:11:2, :9, :14]
    assert decode_batch(jpegs, (9, 14), out=out) is out
    np.testing.assert_array_equal(out, decode_batch(jpegs, (9, 14)))
    out[:] = 7
    assert (memory == 7).all()
    backwards = memory[5:0:-1, :9, :14]
    decode_batch(jpegs, (9, 14), out=backwards)
    np.testing.assert_array_equal(backwards, decode_batch(jpegs, (9, 14)))
    with pytest.raises(ValueError, match=r"shape \(4, 9, 14, 3\), the result needs \(5, 9, 14"):
        decode_batch(jpegs, (9, 14), out=memory[:4, :9, :14])
    with pytest.raises(ValueError, match="share memory"):
        source = np.frombuffer(bytearray(TINY) + bytes(100), np.uint8)
        decode_batch([source, TINY], (2, 2), out=source[150:174].reshape(2, 2, 2, 3))


@needs_tools
def test_bad_images_leave_zeros_and_errors(jpegs: list[bytes], tmp_path: Path) -> None:
    missing = tmp_path / "missing.jpg"
    sources = [BAD, jpegs[0], jpegs[1][:-9], jpegs[1], missing, jpegs[2]]
    boxes = [None] * 5 + [(0, 0, 1000, 1)]
    errors: dict[int, Exception] = {}
    out = np.full((6, 8, 8, 3), 7, np.uint8)
    decode_batch(sources, (8, 8), boxes=boxes, out=out, errors=errors)
    assert {i: type(error) for i, error in errors.items()} == {
        0: DecodeError,
        2: DecodeError,
        4: FileNotFoundError,
        5: ValueError,
    }
    assert "Premature end" in str(errors[2])
    assert errors[4].filename == str(missing)  # type: ignore[attr-defined]
    for i in errors:
        assert not out[i].any()
    for i in (1, 3):
        np.testing.assert_array_equal(out[i], decode_resized_crop(sources[i], None, (8, 8)))


def test_what_is_no_source_or_no_box_is_an_error_of_its_own() -> None:
    sources: list[Any] = [3, TINY, "a\0b", TINY, TINY, ("a", -1, 2), TINY]
    boxes: list[Any] = [None, None, None, 3, (0, 0, 10**400, 1), None, (0, 0, float("nan"), 1)]
    errors: dict[int, Exception] = {}
    out = decode_batch(sources, (2, 3), mode="L", boxes=boxes, errors=errors)
    assert {i: type(error) for i, error in errors.items()} == {
        0: TypeError,
        2: ValueError,
        3: TypeError,
        4: ValueError,
        5: ValueError,
        6: ValueError,
    }
    assert "not int" in str(errors[0]) and "four numbers" in str(errors[3])
    assert out.any(axis=(1, 2)).tolist() == [False, True] + [False] * 5
    with pytest.raises(TypeError, match=r"^image 1: source must be .* not int"):
        decode_batch([TINY, 3], (2, 3))
    with pytest.raises(ValueError, match=r"^image 0: box must be of finite numbers"):
        decode_batch([TINY], (2, 3), boxes=[(0, 0, 10**400, 1)])


def test_what_a_source_raises_as_ctrl_c_does_is_raised() -> None:
    class Path:
        def __fspath__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_batch([TINY, Path()], (2, 3), errors={})


@needs_tools
def test_without_a_place_for_errors_the_first_is_raised(jpegs: list[bytes]) -> None:
    out = np.full((4, 8, 8, 3), 7, np.uint8)
    with pytest.raises(
        DecodeError, match=r"^image 1: cannot decode <bytes of 6 bytes>: Not a JPEG"
    ):
        decode_batch([jpegs[0], BAD, b"", jpegs[1]], (8, 8), out=out)
    np.testing.assert_array_equal(out[3], decode_resized_crop(jpegs[1], None, (8, 8)))
    with pytest.raises(ValueError, match=r"^image 1: cannot decode .* is not a box"):
        decode_batch([TINY, TINY], (8, 8), boxes=[None, (0, 0, 9, 9)])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        decode_batch([TINY, "/nowhere.jpg"], (8, 8))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sources": "a.jpg"}, TypeError, "sequence of images, not one str"),
        ({"sources": TINY}, TypeError, "sequence of images, not one bytes"),
        ({"sources": 5}, TypeError, "sources must be a sequence of images, not 5"),
        ({"boxes": 5}, TypeError, "boxes must be a sequence of boxes, or None, not 5"),
        ({"flip": 1}, TypeError, "flip must be a bool, or one for each image, not 1"),
        ({"dtype": "nonsense"}, ValueError, "dtype must be one of uint8, .* not 'nonsense'"),
        ({"max_pixels": 1.5}, TypeError, "max_pixels must be an int or None, not 1.5"),
        ({"errors": []}, TypeError, r"errors must be a dict or None, not \[\]"),
        ({"boxes": [None]}, ValueError, "2 sources, but 1 of boxes"),
        ({"flip": [True] * 3}, ValueError, "2 sources, but 3 of flip"),
        ({"size": (0, 1)}, ValueError, "1 to 65535"),
        ({"max_pixels": -1}, ValueError, "max_pixels"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    errors: dict[int, Exception] = {}
    given: dict[str, Any] = {"sources": [TINY, TINY], "size": (2, 2), "errors": errors, **arguments}
    with pytest.raises(error, match=message):
        decode_batch(given.pop("sources"), given.pop("size"), **given)
    assert not errors


def test_a_slow_file_leaves_other_threads_running(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result: list[Any] = []
    reader = threading.Thread(target=lambda: result.append(decode_batch([TINY, pipe], (2, 3))))
    reader.start()
    with pipe.open("wb") as file:  # the reader waits for this without the GIL, or nobody goes on
        file.write(TINY[:50])
        file.flush()
        file.write(TINY[50:])
    reader.join()
    np.testing.assert_array_equal(result[0][0], result[0][1])


@pytest.mark.parametrize("raises", [True, False])
def test_signal_handlers_run_while_a_slow_file_is_read(tmp_path: Path, raises: bool) -> None:
    class Interrupted(Exception):
        pass

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    handled = threading.Semaphore(0)
    raised: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        handled.release()
        if raises and not raised:
            raised.append(number)
            raise Interrupted

    def write() -> None:
        with pipe.open("wb") as file:
            file.write(TINY[:50])
            file.flush()
            for _ in range(3):
                handled.acquire()
            file.write(TINY[50:])

    writer = None if raises else threading.Thread(target=write)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        if writer is not None:
            writer.start()
        # Again and again: one alone could come just before the file is opened.
        if raises:
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
                decode_batch([TINY, pipe], (2, 3))  # nobody ever writes
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            images = decode_batch([TINY, pipe, TINY], (2, 3))
            np.testing.assert_array_equal(images[1], images[0])
            np.testing.assert_array_equal(images[2], images[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if writer is not None:
            writer.join()


@needs_tools
def test_ctrl_c_ends_a_batch_that_is_not_done(jpegs: list[bytes]) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # So many that they take many turns on any machine; it ends after one.
    out = np.full((40_000, 4, 4, 3), 7, np.uint8)
    main = threading.get_ident()

    def press() -> None:
        while (out[0] == 7).all():  # it is at work, without the GIL
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGALRM)

    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            decode_batch([jpegs[0]] * len(out), (4, 4), out=out)
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)
    assert (out[-1] == 7).all()


@needs_tools
def test_many_threads_at_once(jpegs: list[bytes]) -> None:
    expected = decode_batch(jpegs, (30, 31))
    wrong: list[int] = []

    def decode() -> None:
        for i in range(20):
            if not np.array_equal(decode_batch(jpegs, (30, 31)), expected):
                wrong.append(i)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_tools
def test_in_a_worker_batches_are_born_in_shared_memory(jpegs: list[bytes]) -> None:
    def decode(indices: Any) -> Any:
        return decode_batch([jpegs[i % 5] for i in indices], (64, 64), dtype="float32")

    with stook.DataLoader(
        [[0, 1, 2], [3, 4]], decode, options=stook.MultiprocessingOptions(num_workers=1)
    ) as loader:
        batches = list(loader)
        stats = loader.stats()
    np.testing.assert_array_equal(batches[1], decode([3, 4]))
    assert (stats.moved, stats.copied) == (2, 0)
