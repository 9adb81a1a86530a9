"""What `import stook` does, and does not."""

from __future__ import annotations

import pytest

from conftest import RunPython

# Each is imported only when it is used.
PARTNERS = (
    "cv2",
    "grain",
    "jax",
    "joblib",
    "multiprocessing.pool",
    "numba",
    "PIL",
    "spdl",
    "torch",
    "tqdm",
)


def test_import_pulls_in_no_partner(run_python: RunPython) -> None:
    code = "import sys, stook; print(*sys.modules)"
    modules = set(run_python(code).check().stdout.split())
    assert "stook._core" in modules
    assert modules & set(PARTNERS) == set()


def test_import_starts_nothing(run_python: RunPython) -> None:
    code = """
        import os, numpy
        before = sorted(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        import stook
        after = sorted(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        assert before == after, (before, after)
    """
    run_python(code).check()


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_platform_is_refused_in_one_sentence(run_python: RunPython, platform: str) -> None:
    code = f"""
        import sys
        sys.platform = {platform!r}
        try:
            import stook
        except ImportError as error:
            print(error)
    """
    lines = run_python(code).check().stdout.splitlines()
    assert len(lines) == 1
    assert "Linux" in lines[0]
    assert platform in lines[0]
    assert lines[0].endswith(".")
    assert ". " not in lines[0]
