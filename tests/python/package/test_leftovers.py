"""The check that runs after every test sees what it is there to see."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import RunPython, StartPython
from leftovers import Snapshot, left_since, wait_until


def left(before: Snapshot) -> str:
    """What is left now, without waiting for it to go."""
    return "\n".join(left_since(before, deadline=0.0))


def test_nothing_is_reported_where_nothing_is_left() -> None:
    before = Snapshot.take()
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert left(before) == ""


def test_a_process_is_reported_and_ended() -> None:
    before = Snapshot.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert f"process {child.pid}" in left(before)
    assert child.wait(30) == -9
    child.communicate()


def test_a_process_whose_parent_died_is_reported() -> None:
    before = Snapshot.take()
    code = """if True:
        import subprocess, sys
        orphan = [sys.executable, "-c", "input()"]
        gone = subprocess.DEVNULL
        print(subprocess.Popen(orphan, stdin=0, stdout=gone, stderr=gone).pid)
    """
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=reader, capture_output=True, text=True, check=True
    )
    assert f"process {int(done.stdout)}" in left(before)
    os.close(reader)
    os.close(writer)


def test_a_zombie_is_reported() -> None:
    before = Snapshot.take()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert wait_until(lambda: "zombie" in left(before), 10)
    os.waitpid(pid, 0)


def test_a_thread_is_reported() -> None:
    before = Snapshot.take()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="kept")
    thread.start()
    assert "kept" in left(before)
    stop.set()
    thread.join()


def test_a_descriptor_is_reported() -> None:
    before = Snapshot.take()
    descriptor = os.memfd_create("stook-test")
    assert f"descriptor {descriptor}: /memfd:stook-test" in left(before)
    os.close(descriptor)


def test_a_mapping_is_reported() -> None:
    before = Snapshot.take()
    descriptor = os.memfd_create("stook-test")
    os.truncate(descriptor, mmap.PAGESIZE)
    mapping = mmap.mmap(descriptor, mmap.PAGESIZE)
    os.close(descriptor)
    assert "mapping" in left(before)
    mapping.close()


def test_a_segment_is_reported() -> None:
    before = Snapshot.take()
    segment = Path(f"/dev/shm/stook-test-{os.getpid()}")
    segment.touch()
    assert str(segment) in left(before)
    segment.unlink()


@pytest.mark.leaves("shows that the marker lets a test pass", "descriptors")
def test_the_marker_lets_a_kind_pass(request: pytest.FixtureRequest) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    request.node.session._stook_kept = descriptor


def test_what_the_marked_test_kept_is_not_held_against_others(
    request: pytest.FixtureRequest,
) -> None:
    kept = getattr(request.node.session, "_stook_kept", None)
    if kept is not None:
        os.close(kept)


def test_run_python_gives_status_and_output(run_python: RunPython) -> None:
    done = run_python("import sys; print(sys.argv[1]); sys.exit('bad')", "word")
    assert (done.returncode, done.stdout, done.stderr) == (1, "word\n", "bad\n")
    with pytest.raises(pytest.fail.Exception, match="bad"):
        done.check()


def test_run_python_turns_warnings_into_errors(run_python: RunPython) -> None:
    assert "UserWarning: w" in run_python("import warnings; warnings.warn('w')").stderr


def test_run_python_shows_where_a_hanging_tree_stands(run_python: RunPython) -> None:
    code = """
        import os, threading
        def stuck_in_child(): threading.Event().wait()
        def stuck_in_parent(): os.waitpid(pid, 0)
        pid = os.fork()
        stuck_in_child() if pid == 0 else stuck_in_parent()
    """
    with pytest.raises(pytest.fail.Exception) as failure:
        run_python(code, deadline=1.0)
    assert "did not end within 1.0 s" in str(failure.value)
    assert "in stuck_in_child" in str(failure.value)
    assert "in stuck_in_parent" in str(failure.value)


def test_a_tree_that_outlives_the_script_is_a_failure(start_python: StartPython) -> None:
    code = """
        import os, signal
        if os.fork() == 0:
            os.setsid()
            signal.pause()
    """
    process = start_python(code)
    with pytest.raises(pytest.fail.Exception, match=r"there was left:\nprocess \d+"):
        process.finish(tree_deadline=0.5)
    assert process.tree() == []
