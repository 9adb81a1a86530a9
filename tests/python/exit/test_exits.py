"""Programs that end, by every way there is, while a loader is at work: nothing of them is left.

`run_python` and `finish` assert that no process of the program's tree outlives it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from conftest import RunPython, StartPython
from leftovers import wait_until
from python_process import PythonProcess

each_method = pytest.mark.parametrize("method", ["forkserver", "fork"])

PREAMBLE = """
import atexit, os, sys, signal, threading, numpy as np, stook

method = sys.argv[1]
options = stook.MultiprocessingOptions(num_workers=2, start_method=method)

def load(index):
    return np.full(5000, index)

def sleeps(index):
    if index == 0:
        return 0
    print("asleep", flush=True)
    threading.Event().wait()

loader = stook.DataLoader(range(1000), load, options=options)
elements = iter(loader)
kept = [next(elements) for _ in range(5)]
"""

ENDINGS = {
    "end of the script": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "exception": ("raise RuntimeError('in the middle')", 1),
    "os._exit": ("os._exit(4)", 4),
    "abort": ("os.abort()", -signal.SIGABRT),
    "in the loop": ("for element in loader: sys.exit(5)", 5),
    "in a thread's loop": (
        "t = threading.Thread(target=lambda: list(elements), daemon=True); t.start(); sys.exit(6)",
        6,
    ),
    "in a daemon thread's loop": (
        "q = __import__('queue').Queue(4)\n"
        "def fill():\n"
        "    for element in stook.DataLoader(range(10**6), load, options=options): q.put(element)\n"
        "loader.close()\n"
        "__import__('warnings').simplefilter('ignore')  # of a fork in a thread\n"
        "threading.Thread(target=fill, daemon=True).start()\n"
        "for _ in range(200): q.get()\n"
        "sys.exit(9)",
        9,
    ),
    "in a daemon thread's decoding": (
        "import subprocess\n"
        "picture = b'P6 640 480 255 ' + bytes(640 * 480 * 3)\n"
        "data = subprocess.run('cjpeg', input=picture, stdout=subprocess.PIPE).stdout\n"
        "def decode():\n"
        "    while True: stook.io.decode_jpeg(data)\n"
        "for _ in range(3): threading.Thread(target=decode, daemon=True).start()\n"
        "for _ in range(20): stook.io.decode_jpeg(data)\n"
        "sys.exit(10)",
        10,
    ),
    "next at exit": ("atexit.register(lambda: print(kept[4][0], next(elements)[0]))", 0),
    "cycle": ("loader.me = loader; kept.append(loader); sys.exit(7)", 7),
    "kept for ever": ("import builtins; builtins.kept = (loader, elements, kept)", 0),
    "closed": ("loader.close(); loader.close()", 0),
    "execv": ("os.execv(sys.executable, [sys.executable, '-c', 'import sys; sys.exit(8)'])", 8),
}
# A daemon thread hears that its iterator is closed, and may get to say so.
LOUD = ("exception", "abort", "in a thread's loop", "in a daemon thread's loop")


@each_method
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_ends_in_the_middle(method: str, ending: str, run_python: RunPython) -> None:
    code, status = ENDINGS[ending]
    flags = ("-W", "error") if "thread" in ending else ("-X", "dev", "-W", "error")
    done = run_python(PREAMBLE + code + "\n", method, flags=flags)
    assert done.returncode == status, str(done)
    assert done.stdout == ("4 5\n" if ending == "next at exit" else "")
    if ending not in LOUD:
        assert done.stderr == "", str(done)


@each_method
def test_an_array_read_at_the_very_end(method: str, run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
class Last:
    def __del__(self):
        for number, array in enumerate(self.arrays):  # so late NumPy can import nothing
            assert array[0] == array[4999] == number
        os.write(1, b"read at the end")

last = Last()
last.arrays = kept
sys.modules["__kept__"] = last
del last, kept
""",
        method,
    ).check()
    assert done.stdout == "read at the end"


# ---- signals while workers are stuck -------------------------------------------------------------

STUCK = (
    PREAMBLE
    + """
loader.close()
loader = stook.DataLoader(range(8), sleeps, options=options)
elements = iter(loader)
assert next(elements) == 0
"""
)


def wait_until_stuck(process: PythonProcess) -> None:
    wait_until(lambda: process.stdout.count("asleep") >= 2 or not process.running(), 60)
    assert process.stdout.count("asleep") == 2, process.stderr


def wait_for_sleep(process: PythonProcess) -> None:
    """Until its main thread is in epoll_pwait2, which is system call 441."""
    syscall = Path(f"/proc/{process.pid}/syscall")
    assert wait_until(lambda: syscall.read_text().startswith("441 "), 60)


@each_method
def test_sigterm_ends_a_program_whose_workers_are_stuck(
    method: str, start_python: StartPython
) -> None:
    process = start_python(STUCK + "next(elements)\n", method)
    wait_until_stuck(process)
    process.send_signal(signal.SIGTERM)
    assert process.finish().returncode == -signal.SIGTERM


@each_method
@pytest.mark.parametrize("where", ["next", "elsewhere"])
def test_ctrl_c_ends_a_program_whose_workers_are_stuck(
    method: str, where: str, start_python: StartPython
) -> None:
    then = "next(elements)\n" if where == "next" else "threading.Event().wait()\n"
    process = start_python(STUCK + then, method)
    wait_until_stuck(process)
    # A terminal's Ctrl-C goes to the whole group of the program, of which no worker is.
    assert os.getpgid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGINT)
    done = process.finish()
    assert done.returncode == -signal.SIGINT, str(done)
    assert done.stderr.count("KeyboardInterrupt") == 1, str(done)


@each_method
def test_ctrl_c_can_be_caught_and_the_pass_goes_on(method: str, start_python: StartPython) -> None:
    process = start_python(
        PREAMBLE
        + """
loader.close()
flag = os.path.join(os.getcwd(), "go")

def waits(index):
    while index == 3 and not os.path.exists(flag):
        threading.Event().wait(0.01)
    return index

loader = stook.DataLoader(range(6), waits, options=options)
elements = iter(loader)
found = [next(elements) for _ in range(3)]
print("at three", flush=True)
try:
    next(elements)
except KeyboardInterrupt:
    print("caught", flush=True)
open(flag, "w").close()
assert [*found, *elements] == list(range(6))
assert list(loader) == list(range(6))
""",
        method,
    )
    process.wait_for_output("at three")
    wait_for_sleep(process)
    os.killpg(process.pid, signal.SIGINT)
    process.finish().check()
    assert "caught" in process.stdout


@each_method
def test_signal_handlers_run_while_next_waits(method: str, start_python: StartPython) -> None:
    process = start_python(
        STUCK
        + """
handled = []

def handler(number, frame):
    handled.append(number)
    print("handled", flush=True)
    if len(handled) == 3:
        loader.close()

signal.signal(signal.SIGUSR1, handler)
print("ready", flush=True)
try:
    next(elements)
except stook.StookError as error:
    assert "iterator is closed" in str(error)
    print("closed", flush=True)
""",
        method,
    )
    process.wait_for_output("ready")
    for count in range(1, 4):
        process.send_signal(signal.SIGUSR1)
        assert wait_until(lambda: process.stdout.count("handled") >= count, 60)  # noqa: B023
    process.finish().check()
    assert process.stdout.endswith("handled\nclosed\n")


# ---- while workers are being started -------------------------------------------------------------

# Its import takes for ever, except in the program that wrote it.
SLOW_MODULE = """
import os, pathlib, sys, threading, stook
pathlib.Path("slow_module.py").write_text('''
import os, threading
if os.environ.get("HERE") != str(os.getpid()):
    os.system("sleep 1000 &")
    print("importing", flush=True)
    threading.Event().wait()
def transform(index):
    return index
''')
os.environ["HERE"] = str(os.getpid())
sys.path.insert(0, os.getcwd())
import slow_module
options = stook.MultiprocessingOptions(num_workers=2)
loader = stook.DataLoader(range(3), slow_module.transform, options=options)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_ends_while_its_server_imports(
    number: int, start_python: StartPython
) -> None:
    process = start_python(SLOW_MODULE + "list(loader)\n", flags=())
    process.wait_for_output("importing")
    wait_for_sleep(process)
    process.send_signal(number)
    assert process.finish().returncode == -number


def test_closing_while_the_server_imports(start_python: StartPython) -> None:
    process = start_python(
        SLOW_MODULE
        + """
elements = iter(loader)

def consume():
    try:
        next(elements)
    except stook.StookError as error:
        assert "iterator is closed" in str(error), error
        print("woken", flush=True)

thread = threading.Thread(target=consume)
thread.start()
sys.stdin = open("go")
sys.stdin.readline()
loader.close()
thread.join()
print("closed", flush=True)
""".replace('open("go")', "open(sys.argv[1])"),
        str(fifo := Path(os.environ.get("TMPDIR", "/tmp")) / f"stook-test-{os.getpid()}"),
        flags=(),
    )
    os.mkfifo(fifo)
    try:
        process.wait_for_output("importing")
        fifo.write_text("go\n")
        process.finish().check()
    finally:
        fifo.unlink()
    assert process.stdout == "importing\nwoken\nclosed\n"
