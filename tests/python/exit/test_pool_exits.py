"""Programs end while a `stook.Pool` runs: quietly, at once, and with nothing left behind."""

from __future__ import annotations

import signal

import pytest

from conftest import RunPython, StartPython

FUNCTIONS = """
    import itertools, time
    import stook
    def square(x):
        return x * x
    def stuck(x):
        while True:
            time.sleep(1000)
"""

STATES = {
    "idle": "pool.map(square, range(10))",
    "results to come": "kept = pool.map_async(square, range(100_000), 1)",
    "stuck": "kept = [pool.apply_async(stuck, (1,)) for _ in range(10)]",
    "half taken": "kept = pool.imap(square, itertools.count()); next(kept)",
    "half drawn": "kept = pool.imap(square, (n for n in itertools.count())); next(kept)",
    "closed": "kept = pool.apply_async(square, (2,)); pool.close()",
    "callbacks": "[pool.apply_async(square, (n,), callback=lambda _: None) for n in range(1000)]",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_a_program_ends_with_its_pool(run_python: RunPython, state: str, method: str) -> None:
    ended = run_python(
        f"""{FUNCTIONS}
    pool = stook.Pool(2, start_method={method!r})
    {STATES[state]}
    print("end")
    """,
        flags=(),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")


def test_an_error_ends_a_program_with_its_pool(run_python: RunPython) -> None:
    ended = run_python(
        f"""{FUNCTIONS}
    with stook.Pool(2) as pool:
        results = pool.imap(square, itertools.count())
        next(results)
        raise SystemExit(3)
    """
    )
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.parametrize(
    "call",
    [
        "pool.apply(stuck, (1,))",
        "pool.map(stuck, range(10))",
        "list(pool.imap(stuck, range(10)))",
        "list(pool.imap(stuck, (n for n in range(10))))",
        "pool.apply_async(stuck, (1,)).get()",
        "pool.apply_async(stuck, (1,)); pool.close(); pool.join()",
        "[None for _ in pool.imap(square, itertools.count())]",
    ],
)
def test_one_ctrl_c_ends_a_program(start_python: StartPython, call: str) -> None:
    program = start_python(
        f"""{FUNCTIONS}
    with stook.Pool(2) as pool:
        print(pool.apply(square, (3,)), flush=True)
        {call}
    """
    )
    program.wait_for_output("9")
    program.send_signal(signal.SIGINT)
    ended = program.finish()
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert ended.stderr.count("Traceback") == 1


def test_a_pool_in_a_child_of_multiprocessing(run_python: RunPython) -> None:
    ended = run_python(
        f"""{FUNCTIONS}
    import multiprocessing
    def child():
        with stook.Pool(2) as pool:
            print(pool.map(abs, range(-3, 1)))
    for method in ("fork", "spawn"):
        if __name__ == "__main__":
            process = multiprocessing.get_context(method).Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
    """,
        flags=(),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "[3, 2, 1, 0]\n" * 2
