"""Programs with executors that end, by every way there is: what was submitted is done, then."""

from __future__ import annotations

import signal

import pytest

from conftest import RunPython, StartPython

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

PREAMBLE = """
import atexit, multiprocessing, os, signal, sys, threading, time, stook
from concurrent.futures.process import BrokenProcessPool

def say(text):
    print(text, flush=True)
    return text

def pause():
    print("paused", flush=True)
    while True:
        signal.pause()

def make(max_workers=1):
    return stook.ProcessPoolExecutor(max_workers, multiprocessing.get_context(sys.argv[1]))
"""

FINISHED = {
    "nothing is called": "executor.submit(say, 'done')",
    "shutdown without waiting": "executor.submit(say, 'done'); executor.shutdown(wait=False)",
    "dropped": "executor.submit(say, 'done'); del executor",
    "a callback": "executor.submit(abs, -1).add_done_callback(lambda _: print('done'))",
    "a cycle": "executor.me = executor; executor.submit(say, 'done'); del executor",
    "a dead thread's": (
        "t = threading.Thread(target=lambda: executor.submit(say, 'done')); t.start(); t.join()"
    ),
    "many": "[executor.submit(abs, -n) for n in range(5000)]; executor.submit(say, 'done')",
}


@each_method
@pytest.mark.parametrize("ending", FINISHED)
def test_what_was_submitted_is_done_at_exit(
    run_python: RunPython, method: str, ending: str
) -> None:
    code = f"{PREAMBLE}\nexecutor = make()\nexecutor.submit(abs, -1).result()\n{FINISHED[ending]}\n"
    done = run_python(code, method).check()
    assert (done.stdout, done.stderr) == ("done\n", "")


@each_method
def test_at_exit_nothing_more_is_taken(run_python: RunPython, method: str) -> None:
    code = """
@atexit.register
def submit():
    for executor in (used, unused):
        try:
            executor.submit(abs, -1)
        except RuntimeError as error:
            print(error)

used, unused = make(), make()
used.submit(abs, -1)
"""
    done = run_python(PREAMBLE + code, method).check()
    assert done.stdout == "cannot schedule new futures after interpreter shutdown\n" * 2
    assert done.stderr == ""


ENDED = {
    "os._exit": ("os._exit(4)", 4),
    "abort": ("os.abort()", -signal.SIGABRT),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "execv": ("os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(8)'])", 8),
    "kill_workers": ("executor.kill_workers(); sys.exit(5)", 5),
}


@each_method
@pytest.mark.parametrize("ending", ENDED)
def test_a_program_that_is_gone_leaves_no_worker(
    run_python: RunPython, method: str, ending: str
) -> None:
    line, code = ENDED[ending]
    script = f"""{PREAMBLE}
executor = make()
future = executor.submit(pause)
while not future.running():
    pass
{line}
"""
    assert run_python(script, method).returncode == code


INTERRUPTED = {
    "a result in a with": "with make() as executor:\n    executor.submit(pause).result()",
    "the end of a with": "with make() as executor:\n    executor.submit(pause)",
    "work in a with": (
        # Not signal.pause(), which sleeps through a signal that comes just before it.
        "with make() as executor:\n    executor.submit(pause)\n    while True: time.sleep(0.1)"
    ),
    "map in a with": (
        "with make() as executor:\n    list(executor.map(lambda _: pause(), range(9)))"
    ),
    "wait in a with": (
        "import concurrent.futures\n"
        "with make() as executor:\n"
        "    concurrent.futures.wait([executor.submit(pause)])"
    ),
    "asyncio in a with": (
        "import asyncio\n"
        "with make() as executor:\n"
        "    async def run(): await asyncio.get_running_loop().run_in_executor(executor, pause)\n"
        "    asyncio.run(run())"
    ),
    "a result": "executor = make()\nexecutor.submit(pause).result()",
    "shutdown": "executor = make()\nexecutor.submit(pause)\nexecutor.shutdown()",
    "the interpreter's exit": "executor = make()\nexecutor.submit(pause)",
}


@each_method
@pytest.mark.parametrize("where", INTERRUPTED)
def test_one_interrupt_ends_a_program(start_python: StartPython, method: str, where: str) -> None:
    program = start_python(f"{PREAMBLE}\n{INTERRUPTED[where]}\n", method)
    program.wait_for_output("paused")
    program.send_signal(signal.SIGINT)
    done = program.finish()
    if where != "the interpreter's exit":
        assert done.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in done.stderr


# The main thread sleeps where only the pool's end would wake it.
JOINING = ("the end of a with", "shutdown", "the interpreter's exit")


@each_method
@pytest.mark.parametrize("where", JOINING)
def test_an_interrupt_that_wakes_nobody_ends_a_program(
    start_python: StartPython, method: str, where: str
) -> None:
    # As if it came just before the main thread's sleep: another thread gets the signal.
    code = f"""{PREAMBLE}
class Executor(stook.ProcessPoolExecutor):
    def submit(self, function):
        super().submit(function)
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        print("deaf", flush=True)

def make():
    return Executor(1, multiprocessing.get_context(sys.argv[1]))

{INTERRUPTED[where]}
"""
    program = start_python(code, method)
    program.wait_for_output("paused")
    program.wait_for_output("deaf")
    program.send_signal(signal.SIGINT)
    done = program.finish()
    if where != "the interpreter's exit":
        assert "KeyboardInterrupt" in done.stderr


@each_method
def test_an_interrupt_between_tasks_ends_a_program(start_python: StartPython, method: str) -> None:
    code = """
with make(2) as executor:
    print("started", flush=True)
    while True:
        futures = [executor.submit(abs, -number) for number in range(50)]
        assert [future.result() for future in futures] == [*range(50)]
"""
    program = start_python(PREAMBLE + code, method)
    program.wait_for_output("started")
    program.send_signal(signal.SIGINT)
    done = program.finish()
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("KeyboardInterrupt") == 1
