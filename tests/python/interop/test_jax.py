"""JAX in the program that consumes: delivered arrays become its arrays, beside its threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from partner_loader import DEADLINE, PARTNER_FLAGS, loader, require

from conftest import RunPython

jax, jnp = require("jax", "jax.numpy")

pytestmark = pytest.mark.leaves("JAX keeps threads", "threads", "descriptors")

KEPT = 200
ELEMENTS = 2000


@pytest.fixture(scope="module", autouse=True)
def _jax_has_started() -> None:
    jnp.zeros(3).block_until_ready()


def numbers(index: int) -> Any:
    return np.arange(index, index + 2048, dtype=np.float32)


@pytest.mark.parametrize(
    "take", [jnp.asarray, jnp.array, jax.device_put], ids=["asarray", "array", "device_put"]
)
def test_arrays_of_jax_keep_their_values(take: Any) -> None:
    kept: list[Any] = []
    with loader(range(ELEMENTS), numbers, num_workers=2) as elements:
        for index, element in enumerate(elements):
            if index % (ELEMENTS // KEPT) == 0:
                kept.append(take(element))
            del element
        # Every block that was free has been used again, many times over.
        assert elements.stats().elements == ELEMENTS
    assert len(kept) == KEPT
    for place, array in enumerate(kept):
        assert array.dtype == jnp.float32
        assert np.array_equal(np.asarray(array), numbers(place * (ELEMENTS // KEPT)))


def test_dlpack_to_jax() -> None:
    with loader(range(40), numbers) as elements:
        arrays = [jax.dlpack.from_dlpack(element) for element in elements]
    for index, array in enumerate(arrays):
        assert np.array_equal(np.asarray(array), numbers(index))


def test_a_compiled_step_takes_trees_of_delivered_arrays() -> None:
    step = jax.jit(lambda tree: tree["image"].sum(axis=1) + tree["label"])
    with loader(range(30), _element, num_workers=2, batch_size=10) as batches:
        sums = [step(batch) for batch in batches]
    want = [float(numbers(index).sum()) + index for index in range(30)]
    np.testing.assert_allclose(np.concatenate(sums), want, rtol=1e-5)


def _element(index: int) -> Any:
    return {"image": numbers(index), "label": np.float32(index)}


def test_arrays_of_jax_are_elements() -> None:
    with loader(range(3), _made_by_jax) as elements:
        for index, element in enumerate(elements):
            assert isinstance(element, jax.Array)
            assert np.array_equal(np.asarray(element), numbers(index) * 2)


def _made_by_jax(index: int) -> Any:
    return jnp.asarray(numbers(index)) * 2


SCRIPT = """
    import sys, warnings
    import numpy as np, stook
    import jax.numpy as jnp

    square = jnp.ones((300, 300))
    (square @ square).block_until_ready()  # its threads run from here on
    options = stook.MultiprocessingOptions(num_workers=2, start_method=sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with stook.DataLoader(
            range(50), lambda index: np.full((64, 64), index, np.float32), options=options
        ) as loader:
            for index, element in enumerate(loader):
                assert float(jnp.asarray(element).sum()) == 4096.0 * index
    told = [str(entry.message) for entry in caught if "start_method" in str(entry.message)]
    print(index, *told)
"""


def test_threads_of_jax_are_no_matter_to_fresh_workers(run_python: RunPython) -> None:
    done = run_python(SCRIPT, "forkserver", deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout == "49\n"


def test_forking_beside_threads_of_jax_is_warned_about(run_python: RunPython) -> None:
    done = run_python(SCRIPT, "fork", deadline=DEADLINE, flags=PARTNER_FLAGS).check()
    assert done.stdout.startswith("49 start_method='fork' in a process with threads of jax: a lock")
    assert "use start_method='forkserver'" in done.stdout
