"""`DataLoader.profile()`, of loaders with `enable_profiling`."""

from __future__ import annotations

import os
from typing import Any

from .errors import StookError
from .profile import LoaderProfile

__all__ = ["Profiled", "not_profiled"]


def not_profiled() -> StookError:
    """What `profile()` raises where nothing was measured."""
    return StookError(
        "profile(): nothing was measured; pass options=stook.MultiprocessingOptions(...,"
        " enable_profiling=True), or the same of stook.MultithreadingOptions"
    )


class Profiled:
    """What a loader has for it."""

    _options: Any
    _pool: Any

    def profile(self, trace: str | os.PathLike[str] | None = None) -> LoaderProfile:
        """Where the time of the pass under way went, or of the last one.

        At the end of each pass, also of one that is left early, its text is printed to standard
        error.

        Args:
          trace: A path: the last events of each worker and of the trainer (8192 of each: stages,
            waits, and the hand-over of each element) are written there, in JSON that
            https://ui.perfetto.dev opens.

        Raises:
          StookError: The options do not say `enable_profiling=True`.
          OSError: The trace cannot be written.

        Example:
          >>> import stook
          >>> options = stook.MultiprocessingOptions(enable_profiling=True)
          >>> loader = stook.DataLoader(range(3), hex, options=options)
          >>> list(loader)
          ['0x0', '0x1', '0x2']
          >>> [(stage.name, stage.calls) for stage in loader.profile().stages]
          [('source', 3), ('hex', 3), ('rest', 3)]
        """
        if not self._options.enable_profiling:
            raise not_profiled()
        pool = self._pool
        if pool is None:
            return LoaderProfile("inline", 0, 0.0, 0)
        profile: LoaderProfile = pool.profile(trace)
        return profile
