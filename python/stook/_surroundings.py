"""The caller's surroundings, carried to a fresh interpreter: a worker sees what the caller sees."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any

__all__ = ["Surroundings", "thread_variables"]

# What OpenMP and BLAS libraries read when they are loaded.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
)


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that limit OpenMP, BLAS and OpenCV to so many threads."""
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


@dataclass(frozen=True)
class Surroundings:
    """What a fresh interpreter takes over. The environment is given to it when it starts.

    Attributes:
      argv: `sys.argv`.
      directory: The working directory, or `None` if it is gone.
      warning_filters: `warnings.filters`.
      log_levels: Level of each logger that has one; the root logger's name is `""`.
    """

    argv: list[str]
    directory: str | None
    warning_filters: list[Any]
    log_levels: dict[str, int]

    @classmethod
    def of_this_process(cls) -> Surroundings:
        try:
            directory: str | None = os.getcwd()
        except OSError:
            directory = None
        levels = {"": logging.getLogger().level}
        for name, logger in logging.Logger.manager.loggerDict.items():
            if isinstance(logger, logging.Logger) and logger.level:
                levels[name] = logger.level
        return cls(list(getattr(sys, "argv", [""])), directory, _picklable_filters(), levels)

    def take_over(self) -> None:
        """Makes this process's surroundings equal to these."""
        sys.argv[:] = self.argv
        if self.directory is not None:
            try:
                os.chdir(self.directory)
            except OSError as error:
                warnings.warn(
                    f"a worker cannot enter the working directory {self.directory!r} ({error})",
                    RuntimeWarning,
                    stacklevel=1,
                )
        for name, level in self.log_levels.items():
            logging.getLogger(name or None).setLevel(level)

    def filter_warnings(self) -> None:
        """Apart from the rest: a filter's category may be a class of a module of the user's."""
        warnings.filters[:] = self.warning_filters  # type: ignore[index]
        mutated = getattr(warnings, "_filters_mutated", None)
        if mutated is not None:
            mutated()


def _picklable_filters() -> list[Any]:
    """Filters whose category can be imported elsewhere; those of `__main__` stay here."""
    kept = []
    for entry in warnings.filters:
        category = entry[2]
        module = sys.modules.get(category.__module__)
        if category.__module__ != "__main__" and getattr(module, category.__name__, 0) is category:
            kept.append(entry)
    return kept
