"""Programs that end, are forked or are interrupted around pure calls: nothing of them is left."""

from __future__ import annotations

import signal

import pytest

from conftest import RunPython, StartPython

PREAMBLE = """
import asyncio, atexit, os, signal, sys, threading


def at_the_end():
    for action in last_actions:
        try:
            print(action())
        except Exception as error:
            print(type(error).__name__, error)

last_actions = []
atexit.register(at_the_end)  # before stook's own, so it runs after them
import stook

pure = stook.pure(max_workers=2)

@pure
def square(number):
    return number * number

@pure
async def square_async(number):
    return number * number

@pure
def stick():
    print("stuck", flush=True)
    threading.Event().wait()

assert square(3) == 9
"""

ENDINGS = {
    "end of the script": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "os._exit": ("os._exit(4)", 4, ""),
    "kept for ever": ("import builtins; builtins.kept = (square, square_async)", 0, ""),
    "a call that nobody waits for": (
        "async def main(): stick.call_async(); square_async(3)\nasyncio.run(main())",
        0,
        "",
    ),
    "a daemon thread that waits": (
        "threading.Thread(target=stick, daemon=True).start()\nsquare(4)\nsys.exit(5)",
        5,
        None,
    ),
    "a thread that is waited for": (
        "threading.Thread(target=lambda: print(square(5))).start()",
        0,
        "25\n",
    ),
    "a handler that calls": ("atexit.register(lambda: print(square(6)))", 0, "36\n"),
    "a handler that runs a loop": (
        "atexit.register(lambda: print(asyncio.run(square_async(6))))",
        0,
        "36\n",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_that_ends(ending: str, run_python: RunPython) -> None:
    code, status, output = ENDINGS[ending]
    # A daemon thread may be told of the end, and print that.
    flags = ("-W", "error") if output is None else ("-X", "dev", "-W", "error")
    done = run_python(PREAMBLE + code + "\n", flags=flags)
    assert done.returncode == status, str(done)
    if output is not None:
        assert (done.stdout.replace("stuck\n", ""), done.stderr) == (output, ""), str(done)


def test_a_call_after_the_workers_have_ended(run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
last_actions[:] = [
    lambda: square(2),
    lambda: asyncio.run(square_async(2)),
    lambda: square.__wrapped__(2),
]
"""
    ).check()
    first, second, third = done.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("PoolBroken") and "exits" in line
    assert third == "4"
    assert done.stderr == ""


def test_ctrl_c_ends_a_call(start_python: StartPython) -> None:
    process = start_python(
        PREAMBLE
        + """
try:
    stick()
except KeyboardInterrupt:
    print("interrupted", square(7))
"""
    )
    process.wait_for_output("stuck")
    process.send_signal(signal.SIGINT)
    done = process.finish().check()
    assert "interrupted 49" in done.stdout
    assert done.stderr == ""


def test_ctrl_c_ends_a_loop(start_python: StartPython) -> None:
    process = start_python(
        PREAMBLE
        + """
async def main():
    await asyncio.gather(stick.call_async(), *(square_async(number) for number in range(100)))

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", square(7))
"""
    )
    process.wait_for_output("stuck")
    process.send_signal(signal.SIGINT)
    done = process.finish().check()
    assert "interrupted 49" in done.stdout
    assert done.stderr == ""


def test_a_child_forked_while_a_loop_waits(run_python: RunPython) -> None:
    done = run_python(
        PREAMBLE
        + """
async def main():
    calls = [square_async(number) for number in range(20)]
    child = os.fork()
    if child == 0:
        asyncio._set_running_loop(None)
        status = 1
        try:
            assert square(11) == 121
            assert asyncio.run(square_async(12)) == 144
            square.close()
            status = 0
        finally:
            os._exit(status)
    print(sum(await asyncio.gather(*calls)), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
"""
    ).check()
    assert done.stdout == f"{sum(number * number for number in range(20))} 0\n"


def test_the_program_is_killed(start_python: StartPython) -> None:
    process = start_python(PREAMBLE + "stick()\n")
    process.wait_for_output("stuck")
    process.send_signal(signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL


def test_a_module_that_calls_a_pure_function_while_it_is_imported(
    run_python: RunPython, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tables.py").write_text(
        "import stook\n\n"
        "@stook.pure(max_workers=1)\n"
        "def entry(number):\n"
        "    return number * 10\n\n"
        "TABLE = [entry(number) for number in range(4)]\n\n"
        "@stook.pure(max_workers=1)\n"
        "def look_up(number):\n"
        "    return TABLE[number]\n"
    )
    done = run_python(
        "import sys; sys.path.insert(0, sys.argv[1]); import tables; print(tables.look_up(3))",
        str(folder),
    ).check()
    assert (done.stdout, done.stderr) == ("30\n", "")
