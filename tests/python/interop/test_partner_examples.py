"""The examples that need a partner run as they stand, and say so where it is missing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import RunPython

EXAMPLES = Path(__file__).parents[3] / "examples"


def require_installed(name: str) -> None:
    """Not imported here: what a partner leaves behind is left in a process of its own."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_spdl_stage_makes_the_same_batches_with_both_executors() -> None:
    require_installed("spdl")
    done = run("spdl_stage", "--images", "64", "--workers", "2", "--gamma", "1")
    assert done.returncode == 0, done.stderr
    first, _, *table = done.stdout.splitlines()
    # With a gamma of 1 the curve changes nothing, so the mean is that of the gradients.
    r, c, n = np.ogrid[:224, :224, :64]
    mean = ((r * (n % 7) + c * (n % 5) + n) % 256).mean()
    assert first == f"64 images in 2 batches, 2 workers, mean brightness {mean:.1f}"
    assert [line[:24].strip() for line in table] == ["concurrent.futures", "stook"]


def test_spdl_stage_hands_initargs_to_the_initializer() -> None:
    require_installed("spdl")
    shown = [run("spdl_stage", "--images", "8", "--gamma", g).stdout for g in ("1", "0.45")]
    darker, brighter = (float(re.sub(".* ", "", text.splitlines()[0])) for text in shown)
    assert brighter > darker + 20


def test_spdl_pipeline_makes_the_same_batches_three_ways() -> None:
    require_installed("spdl")
    done = run("spdl_pipeline", "--batches", "3")
    assert done.returncode == 0, done.stderr
    r, c, n = np.ogrid[:224, :224, :96]
    mean = ((r * (n % 7) + c * (n % 5) + n) % 256).mean()
    assert f"mean brightness {mean:.1f}" in done.stdout
    assert done.stdout.count("epoch 1: 3 batches") == 3


def test_grain_pipeline_makes_the_same_batches_and_restores_a_checkpoint() -> None:
    require_installed("grain")
    done = run("grain_pipeline", "--batches", "5")  # 5 times 32 images, and half of them each
    assert done.returncode == 0, done.stderr
    first, _, *table = done.stdout.splitlines()
    assert re.fullmatch(
        r"6 batches, 2 workers, mean brightness \d+\.\d; restored: the last 3 batches", first
    )
    assert [line.split()[0] for line in table] == ["Grain", "stook.grain"]


def test_sklearn_grid_finds_the_numbers_of_the_default_backend() -> None:
    require_installed("sklearn")
    done = run("sklearn_grid", "--images", "200", "--folds", "3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "200 images, 3 folds, 2 workers" in done.stdout
    assert len(re.findall(r"^C .*right +\d+\.\d%  rank [1-6]$", done.stdout, re.MULTILINE)) == 6
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["loky", "stook"]


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("spdl_stage", "spdl", "spdl"),
        ("spdl_pipeline", "spdl", "spdl"),
        ("sklearn_grid", "sklearn", "scikit-learn"),
        ("grain_pipeline", "grain", "grain"),
    ],
)
def test_examples_say_which_package_is_missing(
    run_python: RunPython, name: str, module: str, package: str
) -> None:
    done = run_python(
        """
        import runpy, sys

        path, missing = sys.argv[1:]
        sys.modules[missing] = None
        runpy.run_path(path, run_name="__main__")
        """,
        str(EXAMPLES / f"{name}.py"),
        module,
    )
    assert done.returncode == 1
    assert f"pip install {package}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_generator_stage_of_spdl_yields_everything(run_python: RunPython) -> None:
    require_installed("spdl")
    # SPDL makes a list of what a generator yields, in the worker, where it takes the executor for
    # a pool of processes; where it does not, nothing comes out, and nothing is said.
    done = run_python(
        """
        import stook
        from spdl.pipeline import PipelineBuilder

        def pair(number):
            yield number
            yield -number

        with stook.ProcessPoolExecutor(2) as executor:
            pipeline = (
                PipelineBuilder()
                .add_source(range(1, 7))
                .pipe(pair, executor=executor, concurrency=4)
                .add_sink(2)
                .build(num_threads=1, max_failures=0)
            )
            with pipeline.auto_stop():
                print(sorted(pipeline))
        """,
        flags=("-X", "dev"),
    )
    done.check()
    assert done.stdout.strip() == str(sorted([*range(1, 7), *range(-6, 0)]))


INTERRUPTED = """
import argparse, runpy, sys

def interrupt(*arguments):
    raise KeyboardInterrupt

argparse.ArgumentParser.parse_args = interrupt
sys.path[0] = sys.argv[1].rpartition("/")[0]
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "partner"),
    [
        ("grain_pipeline", "grain"),
        ("jax_photos", "jax"),
        ("spdl_pipeline", "spdl"),
        ("torch_photos", "torch"),
    ],
)
def test_ctrl_c_is_no_traceback(run_python: RunPython, name: str, partner: str) -> None:
    require_installed(partner)
    done = run_python(INTERRUPTED, str(EXAMPLES / f"{name}.py"), flags=())
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
