"""A process that forks while another of its threads is inside a loader, and so holds its lock."""

from __future__ import annotations

import pytest

from conftest import RunPython

PROGRAM = """
import os, sys, threading, warnings, stook

workers = int(sys.argv[1])
inside, go_on = threading.Event(), threading.Event()

class Source:  # iterating it, which a loader does with its lock held, waits
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return index
    def __reduce__(self):
        inside.set()
        go_on.wait()
        return Source, ()

def items():
    inside.set()
    go_on.wait()
    yield 1

if workers:
    loader = stook.DataLoader(Source(), options=stook.MultiprocessingOptions(num_workers=workers))
    thread = threading.Thread(target=lambda: list(loader))
    elements = None
else:
    loader = stook.DataLoader(items())
    elements = iter(loader)
    thread = threading.Thread(target=lambda: next(elements))
thread.start()
inside.wait()
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads, from Python 3.12 on
child = os.fork()
if child == 0:
    if elements is not None:
        elements.close()
    loader.stats()
    loader.close()
    os._exit(3)
_, status = os.waitpid(child, 0)
go_on.set()
thread.join()
loader.close()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(
    run_python: RunPython, workers: int
) -> None:
    assert run_python(PROGRAM, str(workers)).check().stdout == "3\n"
