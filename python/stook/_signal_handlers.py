"""Tells whether a signal handler of the program runs, and whether an exception is one's.

Python runs signal handlers in its main thread, between any two steps of whatever that does. So one
may interrupt this package while the program's arguments are pickled, or its results unpickled.
What it raises then is the program's, and not the argument's; and while it runs, what it has
interrupted stands still.

There is no way to ask Python for either. But a handler is called with the number of the signal and
the frame that it interrupts, which is the one that its own frame goes back to.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
import types

__all__ = ["main_thread", "raised_by_one", "runs_one"]


def main_thread() -> int:
    """The identifier of the thread in which signal handlers run; 0 if there is none."""
    return threading.main_thread().ident or 0


def raised_by_one(error: BaseException) -> bool:
    """True if a signal handler has raised `error`, which was caught in this thread."""
    if threading.get_ident() != main_thread():
        return False
    if isinstance(error, KeyboardInterrupt):  # Python's own handler has no frame
        return True
    traceback = error.__traceback__
    while traceback is not None:
        if _is_of_one(traceback.tb_frame):
            return True
        traceback = traceback.tb_next
    return False


def runs_one() -> bool:
    """True if the main thread is in a signal handler; from any thread."""
    frame = sys._current_frames().get(main_thread())
    while frame is not None:
        if _is_of_one(frame):
            return True
        frame = frame.f_back
    return False


def _is_of_one(frame: types.FrameType) -> bool:
    interrupted = frame.f_back
    code = frame.f_code
    count = code.co_argcount
    has_more = bool(code.co_flags & inspect.CO_VARARGS)
    if interrupted is None or count + has_more == 0:
        return False
    values = frame.f_locals
    arguments = [values.get(name) for name in code.co_varnames[:count]]
    if has_more:
        more = values.get(code.co_varnames[count + code.co_kwonlyargcount])
        if isinstance(more, tuple):
            arguments += more
    return any(
        where is interrupted and isinstance(number, int)
        for number, where in itertools.pairwise(arguments)
    )
