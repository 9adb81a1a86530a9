"""`stook.jax`: JAX takes delivered memory as it lies, and it is not used again while JAX has it.

Run on JAX's CPU device alone.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, loader, require

import stook
import stook.jax
from conftest import RunPython

jax, jnp = require("jax", "jax.numpy")
import ml_dtypes  # noqa: E402 (it comes with JAX)

pytestmark = pytest.mark.leaves("JAX keeps threads", "threads", "descriptors")

ELEMENTS = 600


@pytest.fixture(scope="module", autouse=True)
def _jax_has_started() -> None:
    jnp.zeros(3).block_until_ready()


def on_cpu() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])


def put_local(tree: Any) -> Any:
    return stook.jax.make_array_from_process_local_data(on_cpu(), tree)


def put_on_cpu(tree: Any) -> Any:
    return stook.jax.device_put(tree, on_cpu())


def plain(tree: Any) -> Any:
    return jax.device_put({key: tree[key] for key in ("x", "b")})


each_put = pytest.mark.parametrize("put", [stook.jax.device_put, put_on_cpu, put_local, plain])


def element(index: int) -> Any:
    return {
        "x": np.full((4, 2000), index, np.float32),
        "b": np.full(5000, index % 200, ml_dtypes.bfloat16),
        "of": (str(index), None, b"raw"),
        "number": index,
    }


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@each_put
def test_memory_is_taken_as_it_lies_and_not_used_again(put: Any) -> None:
    kept: list[tuple[int, Any]] = []
    with loader(range(ELEMENTS), element, num_workers=2) as elements:
        for index, made in enumerate(elements):
            arrays = put(made)
            for key in ("x", "b"):
                assert stook.is_shared(made[key])
                assert arrays[key].unsafe_buffer_pointer() == address(made[key])
            if index % 10 == 0:
                kept.append((index, arrays))
            del made, arrays
        # Blocks were free and used again, but for those that JAX has.
        gc.collect()
        held = elements.stats().bytes_live
        assert held >= len(kept) * (32000 + 10000)
        for index, arrays in kept:
            assert (np.asarray(arrays["x"]) == index).all()
            assert (np.asarray(arrays["b"]).astype(int) == index % 200).all()
        del arrays
        kept.clear()
        gc.collect()
        assert elements.stats().bytes_live < held / 4


def test_trees_keep_their_form_and_what_is_no_array() -> None:
    with loader(range(1), element) as elements:
        made = next(iter(elements))
    put = stook.jax.device_put(made)
    assert put.keys() == made.keys()
    assert put["of"] == ("0", None, b"raw")
    assert isinstance(put["number"], jax.Array)
    assert put["b"].dtype == jnp.bfloat16
    dates = np.array(["2026-11-22"], "datetime64[D]")
    assert stook.jax.device_put([dates])[0] is dates


def test_what_jax_has_can_no_longer_be_written() -> None:
    with loader(range(1), element) as elements:
        made = next(iter(elements))
    put = stook.jax.device_put(made)
    with pytest.raises(ValueError, match="read-only"):
        made["x"] += 1
    assert (np.asarray(put["x"]) == 0).all()


def test_a_donated_array_is_not_written_into_the_element() -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    with loader(range(1), element) as elements:
        made = next(iter(elements))
    assert (np.asarray(step(stook.jax.device_put(made)["x"])) == 1).all()
    assert (made["x"] == 0).all()


def test_other_memory_and_dtypes_are_copied_by_jax() -> None:
    made: dict[str, Any] = {
        "strided": np.arange(4000, dtype=np.float32)[::2],
        "wide": np.arange(2000),
    }
    put = stook.jax.device_put(made)
    for key, array in made.items():
        assert np.array_equal(np.asarray(put[key]), array)
        assert put[key].unsafe_buffer_pointer() != address(array)


def test_it_runs_ahead_of_the_trainer() -> None:
    with loader(range(50), element, num_workers=2) as elements:
        for index, put in enumerate(elements.prefetch_to(stook.jax.device_put)):
            assert float(put["x"][0, 0]) == index


def test_it_says_what_to_install(run_python: RunPython) -> None:
    done = run_python(
        """
        import sys
        sys.modules["jax"] = None
        import stook.jax
        try:
            stook.jax.device_put([])
        except ImportError as error:
            print(error)
        """,
        deadline=DEADLINE,
        flags=PARTNER_FLAGS,
    ).check()
    assert "pip install jax" in done.stdout
