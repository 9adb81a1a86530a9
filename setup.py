"""Builds the extension module stook._core with CMake; everything else is said in pyproject.toml.

Environment: STOOK_BUILD_DIR (default build/python-<interpreter>), STOOK_BUILD_TYPE (Release),
STOOK_CMAKE_ARGS (more arguments for CMake), CMAKE_BUILD_PARALLEL_LEVEL (default: the CPUs at hand).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds in a folder that is kept, so that the next build only compiles what changed."""

    def build_extension(self, ext: Extension) -> None:
        import numpy
        import pybind11

        build = Path(os.environ.get("STOOK_BUILD_DIR", ROOT / "build" / self.folder_name()))
        build = build.resolve()
        self.drop_foreign_cache(build)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [
            "cmake",
            *generator,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DCMAKE_BUILD_TYPE={os.environ.get('STOOK_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPython_NumPy_INCLUDE_DIR={numpy.get_include()}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DSTOOK_PYTHON=ON",
            "-DSTOOK_TESTS=OFF",
            *shlex.split(os.environ.get("STOOK_CMAKE_ARGS", "")),
        ]
        self.run_tool(configure)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
        self.run_tool(["cmake", "--build", str(build), "--target", "_core", "--parallel", jobs])
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        self.replace(build / "python" / "stook" / target.name, target)

    def run_tool(self, command: list[str]) -> None:
        """Runs it; with --quiet its output is shown only if it fails."""
        quiet = subprocess.PIPE if self.distribution.verbose == 0 else None
        done = subprocess.run(command, stdout=quiet, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout or ''}\n{shlex.join(command)} failed: {done.returncode}")

    @staticmethod
    def folder_name() -> str:
        return f"python-{sys.implementation.cache_tag}"

    @staticmethod
    def drop_foreign_cache(build: Path) -> None:
        """CMake refuses a cache that was made for another source folder (a copied build tree)."""
        cache = build / "CMakeCache.txt"
        if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(build)

    @staticmethod
    def replace(built: Path, target: Path) -> None:
        """Puts a new file in the place of the old one: processes that run keep what they mapped."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(built, temporary)
        os.replace(temporary, target)


setup(ext_modules=[Extension("stook._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
