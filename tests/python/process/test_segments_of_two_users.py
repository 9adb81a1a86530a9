"""Segments of one user in the hands of another."""

from __future__ import annotations

import os

import pytest

from conftest import RunPython

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


def test_another_users_handle_is_refused(run_python: RunPython) -> None:
    code = """
        import os, stook
        array = stook.SharedMemoryArray(10)
        array.unlink_on_del()
        handle = array.metadata
        child = os.fork()
        if child == 0:
            del array  # or the child would have it mapped
            os.seteuid(65534)
            refused = 0
            for use in (lambda: stook.SharedMemoryArray.from_metadata(handle),
                        handle.close_and_unlink_shm,
                        lambda: stook.unlink_shared([handle])):
                try:
                    use()
                except PermissionError as error:
                    refused += handle.name in str(error)
            os._exit(10 + refused)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, os.path.exists("/dev/shm/" + handle.name))
    """
    flags = ("-X", "dev", "-W", "ignore::DeprecationWarning")
    assert run_python(code, flags=flags).check().stdout == "13 True\n"


@pytest.mark.parametrize("threads", [0, 2])
def test_what_cannot_be_removed_is_counted_and_told_once(
    threads: int, run_python: RunPython
) -> None:
    code = """
        import os, stook, sys
        from stook import _core
        stook.SharedMemoryArray.enable_async_del(int(sys.argv[1]), 3)
        arrays = [stook.SharedMemoryArray(10) for _ in range(20)]
        names = [array.metadata.name for array in arrays]
        for array in arrays:
            array.unlink_on_del()
        del array
        os.seteuid(65534)
        arrays.clear()
        assert _core.flush_reclaimer(30)
        os.seteuid(0)
        stats = _core.reclaimer_stats()
        print(stats["failures"], stats["outstanding"])
        for name in names:
            os.unlink("/dev/shm/" + name)
    """
    result = run_python(code, str(threads)).check()
    assert result.stdout == "20 0\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("stook: giving shared memory back: removing the shared segment stook_")
