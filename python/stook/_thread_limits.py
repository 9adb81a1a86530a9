"""How many threads the libraries use that were loaded before a worker was forked."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

__all__ = ["limit_library_threads", "limit_threads"]

# Functions by which loaded libraries are told how many threads to use.
_SETTERS = (
    "openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "omp_set_num_threads",
    "MKL_Set_Num_Threads",
)


def limit_threads(threads: int) -> None:
    """In a worker: tells the thread pools of packages that were imported before the fork."""
    torch = sys.modules.get("torch")
    if torch is not None:
        # After a parallel operation in the forking process, torch hangs in its children otherwise.
        torch.set_num_threads(threads)
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(threads if threads > 1 else 0)


def limit_library_threads(threads: int) -> None:
    """In a server forked from the caller: tells OpenMP and BLAS libraries that the caller loaded.

    A fresh interpreter needs none of this: there the libraries read the environment.
    """
    for path in _loaded_libraries(("openblas", "libgomp", "libiomp", "libomp", "libmkl_rt")):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            for name in _SETTERS:
                setter = getattr(library, name, None)
                if setter is not None:
                    setter(ctypes.c_int(threads))


def _loaded_libraries(names: tuple[str, ...]) -> list[str]:
    paths: dict[str, None] = {}
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")
            file = "/" + path[2]
            if path[1] and any(name in os.path.basename(file) for name in names):
                paths[file] = None
    return list(paths)
