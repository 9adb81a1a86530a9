"""joblib's and scikit-learn's numbers on Stook's workers."""

from __future__ import annotations

import pytest

from conftest import RunPython

FLAGS = ("-X", "dev")  # not "-W error": the partners warn while they are imported

PROLOGUE = """
import os
import time

import numpy as np
from joblib import Parallel, delayed, parallel_config

import stook.joblib

stook.joblib.register()
"""


def require_installed(*names: str) -> None:
    """Imported in programs of their own only."""
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def test_results_are_in_order_and_from_workers(run_python: RunPython) -> None:
    require_installed("joblib")
    code = """
def twice(i):
    return 2 * i, os.getpid()

def scaled(array, by):
    assert array.flags.writeable
    return array * by

for take in (
    lambda tasks: Parallel(n_jobs=2, backend="stook")(tasks),
    lambda tasks: list(Parallel(n_jobs=2, backend="stook", return_as="generator")(tasks)),
    lambda tasks: Parallel(n_jobs=2, backend="stook", batch_size=7)(tasks),
):
    found = take(delayed(twice)(i) for i in range(100))
    assert [value for value, _ in found] == list(range(0, 200, 2))
    assert os.getpid() not in {pid for _, pid in found}

array = np.arange(100_000.0)
with parallel_config(backend="stook", n_jobs=2):
    found = Parallel()(delayed(scaled)(array, by) for by in range(5))
    assert all(np.array_equal(result, array * by) for by, result in enumerate(found))
    unordered = Parallel(return_as="generator_unordered")(delayed(pow)(i, 2) for i in range(30))
    assert sorted(unordered) == [i * i for i in range(30)]
    assert Parallel(n_jobs=1)(delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
    assert Parallel()([]) == []
"""
    run_python(PROLOGUE + code, flags=FLAGS).check()


def test_workers_are_kept_for_the_next_call(run_python: RunPython) -> None:
    require_installed("joblib")
    code = """
def pid():
    time.sleep(0.001)
    return os.getpid()

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())

def pids():
    return set(Parallel()(delayed(pid)() for _ in range(50)))

with parallel_config(backend="stook", n_jobs=2):
    first = pids()
    servers = children()
    assert 1 <= len(first) <= 2
    assert len(first | pids() | pids()) <= 2
    assert children() == servers
    try:
        Parallel()(delayed(divmod)(1, i - 3) for i in range(10))
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError
    assert Parallel()(delayed(abs)(-i) for i in range(10)) == list(range(10))
with Parallel(n_jobs=2, backend="stook") as parallel:
    assert len({p for _ in range(3) for p in parallel(delayed(pid)() for _ in range(20))}) <= 2
"""
    run_python(PROLOGUE + code, flags=FLAGS).check()


def test_errors_keep_their_type_and_end_the_others(run_python: RunPython) -> None:
    require_installed("joblib")
    code = """
import multiprocessing

class Odd(Exception):
    pass

def fail(i):
    if i == 3:
        raise Odd(i)
    if i > 3:
        time.sleep(3600)
    return i

with parallel_config(backend="stook", n_jobs=2):
    for parallel in (Parallel(pre_dispatch="all", batch_size=1), Parallel(batch_size=1)):
        try:
            parallel(delayed(fail)(i) for i in range(20))
        except Odd as error:
            assert error.args == (3,)
            assert "raise Odd(i)" in str(error.__cause__)
        else:
            raise AssertionError

    def broken():
        yield delayed(abs)(1)
        raise Odd("source")

    try:
        Parallel()(broken())
    except Odd as error:
        assert error.args == ("source",)
    else:
        raise AssertionError
    try:
        Parallel(timeout=0.2)(delayed(time.sleep)(3600) for i in range(2))
    except multiprocessing.TimeoutError:
        pass
    else:
        raise AssertionError
    try:
        Parallel()(delayed(os._exit)(7) for i in range(2))
    except stook.WorkerDied as error:
        assert error.exit_code == 7
    else:
        raise AssertionError
    assert Parallel()(delayed(abs)(-i) for i in range(5)) == list(range(5))
"""
    run_python(PROLOGUE + code, flags=FLAGS).check()


def test_nested_calls_do_not_multiply_processes(run_python: RunPython) -> None:
    """In a worker threads, below these in place: as with the default backend."""
    require_installed("joblib")
    code = """
import threading
from joblib.parallel import get_active_backend

def deepest():
    return type(get_active_backend()[0]).__name__, os.getpid()

def inner():
    name = type(get_active_backend()[0]).__name__
    return name, Parallel(n_jobs=2)(delayed(deepest)() for _ in range(2))

def outer():
    name = type(get_active_backend()[0]).__name__
    return name, os.getpid(), Parallel(n_jobs=2)(delayed(inner)() for _ in range(3))

def shape(found):
    assert all(of == pid for _, pid, inners in found for _, most in inners for _, of in most)
    return [(a, [(b, [c for c, _ in most]) for b, most in inners]) for a, _, inners in found]

ours = Parallel(n_jobs=2, backend="stook")(delayed(outer)() for _ in range(4))
loky = Parallel(n_jobs=2, backend="loky")(delayed(outer)() for _ in range(4))
assert shape(ours) == shape(loky), shape(ours)
"""
    run_python(PROLOGUE + code, flags=FLAGS).check()


def test_settings(run_python: RunPython) -> None:
    require_installed("joblib")
    code = """
import joblib

def threads():
    return os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]

def initialize(number):
    global NUMBER
    NUMBER = number

def number():
    return NUMBER, stook.worker_info().count

def settings(**kwargs):
    with parallel_config(backend="stook", n_jobs=2, **kwargs):
        return Parallel()(delayed(threads)() for _ in range(2))

assert settings(inner_max_num_threads=3) == [("3", "3")] * 2
each = str(max(joblib.cpu_count() // 2, 1))
assert settings() == [(each, each)] * 2
with parallel_config(backend="stook", n_jobs=2, initializer=initialize, initargs=(5,)):
    assert set(Parallel()(delayed(number)() for _ in range(9))) == {(5, 2)}
    assert set(Parallel(n_jobs=3)(delayed(number)() for _ in range(9))) == {(5, 3)}
options = stook.MultiprocessingOptions(start_method="fork")
assert Parallel(n_jobs=2, backend="stook", options=options)(
    delayed(stook.joblib.__name__.upper)() for _ in range(2)
) == ["STOOK.JOBLIB"] * 2
assert joblib.effective_n_jobs(1) == 1
with parallel_config(backend="stook", n_jobs=-1):
    assert joblib.effective_n_jobs(-1) == joblib.cpu_count()
    assert joblib.effective_n_jobs(-2) == max(joblib.cpu_count() - 1, 1)
for wrong, kind in (({"n_jobs": 0}, ValueError), ({"n_jobs": 2, "optoins": 1}, TypeError)):
    try:
        Parallel(backend="stook", **wrong)(delayed(abs)(i) for i in range(2))
    except kind as error:
        assert "n_jobs == 0" in str(error) or "'optoins'" in str(error)
    else:
        raise AssertionError(wrong)
stook.joblib.register(make_default=True)
assert Parallel(n_jobs=2)(delayed(stook.worker_info)() for _ in range(2))[0].count == 2
"""
    run_python(PROLOGUE + code, env={"OMP_NUM_THREADS": None}, flags=FLAGS).check()


def test_scikit_learn_finds_the_same_numbers(run_python: RunPython) -> None:
    require_installed("joblib", "sklearn")
    code = """
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

data, kinds = load_iris(return_X_y=True)

def numbers():
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": ["scale", 0.1]}, cv=3)
    search.fit(data, kinds)
    forest = RandomForestClassifier(8, random_state=0)
    scores = cross_val_score(forest, data, kinds, cv=4)
    table = {
        name: column
        for name, column in search.cv_results_.items()
        if "time" not in name and name != "params"
    }
    return search.best_params_, table, scores, forest.fit(data, kinds).predict_proba(data)

def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)

with parallel_config(backend="loky", n_jobs=2):
    expected = numbers()
with parallel_config(backend="stook", n_jobs=2):
    found = numbers()
assert same(found, expected), (found, expected)
assert not same(found, (*expected[:2], expected[2] + 1e-9, expected[3]))
"""
    run_python(PROLOGUE + code, deadline=90.0, flags=FLAGS).check()


def test_without_joblib_it_says_what_to_install(run_python: RunPython) -> None:
    run_python(
        """
        import sys
        sys.modules["joblib"] = None
        import stook.joblib
        try:
            stook.joblib.register()
        except ImportError as error:
            assert "pip install joblib" in str(error)
        else:
            raise AssertionError
        """
    ).check()


def test_joblib_is_imported_when_it_is_used(run_python: RunPython) -> None:
    run_python(
        """
        import sys, stook, stook.joblib
        assert "joblib" not in sys.modules
        """
    ).check()
