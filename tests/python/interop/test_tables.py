"""Data frames and fitted models as elements and in transforms; data frames as sources."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from partner_loader import loader

pytestmark = pytest.mark.leaves("BLAS and OpenMP keep the threads of a first fit", "threads")

REASON = "{} is not installed"


def pandas() -> Any:
    return pytest.importorskip("pandas", reason=REASON.format("pandas"))


def _mixed_frame(rows: int) -> Any:
    pd = pandas()
    return pd.DataFrame(
        {
            "number": np.arange(rows),
            "fraction": np.linspace(0, 1, rows, dtype=np.float32),
            "name": [f"row {row}" for row in range(rows)],
            "time": pd.date_range("2020-01-01", periods=rows, freq="h", tz="Europe/Paris"),
            "kind": pd.Categorical(["a", "b"] * (rows // 2)),
            "missing": pd.array([None, 1] * (rows // 2), dtype="Int64"),
        },
        index=pd.Index(np.arange(rows) * 2, name="key"),
    )


def _number_frame(rows: int) -> Any:
    return pandas().DataFrame(np.arange(rows * 4.0).reshape(rows, 4), columns=list("abcd"))


def _series(rows: int) -> Any:
    return pandas().Series(np.arange(rows), name="series")


@pytest.mark.parametrize("make", [_mixed_frame, _number_frame], ids=["mixed", "numbers"])
@pytest.mark.parametrize("rows", [2, 5000])
def test_a_data_frame_is_an_element(make: Any, rows: int) -> None:
    pd = pandas()
    with loader([rows], make) as elements:
        (got,) = elements
    want = pickle.loads(pickle.dumps(make(rows), 5))
    pd.testing.assert_frame_equal(got, want, check_freq=True)
    got.iloc[0, 0] = 77  # it is the consumer's
    assert got.iloc[0, 0] == 77


def test_a_series_within_an_element_does_not_keep_its_array_from_moving() -> None:
    pandas()  # skips
    with loader([5000], _beside) as elements:
        (got,) = elements
        stats = elements.stats()
    pandas().testing.assert_series_equal(got["series"], _series(5000))
    assert got["array"].tolist() == list(range(5000))
    assert stats.moved == 1


def _beside(rows: int) -> Any:
    return {"series": _series(rows), "array": np.arange(rows)}


def test_values_of_a_data_frame_do_not_change_with_it() -> None:
    pandas()
    with loader([3, 4], _values) as elements:
        first, second = elements
    assert first.tolist() == second.tolist() == np.arange(20_000.0).reshape(5000, 4).tolist()


_cache: list[Any] = []


def _values(step: int) -> Any:
    if not _cache:
        _cache.append(_number_frame(5000))
    values = _cache[0].to_numpy()
    return values


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_number_frame, r"pandas DataFrame, whose items are columns; .*source\.to_dict"),
        (_series, r"pandas Series, which is indexed by label; pass source\.to_numpy\(\)"),
    ],
    ids=["DataFrame", "Series"],
)
def test_a_table_is_refused_as_a_source(make: Any, text: str) -> None:
    source = make(6)
    with pytest.raises(TypeError, match=text):
        loader(source)


def test_what_the_message_names_is_a_source() -> None:
    frame = _number_frame(3)
    with loader(frame.to_dict("records"), batch_size=3) as batches:
        (batch,) = batches
    assert {name: column.tolist() for name, column in batch.items()} == frame.to_dict("list")
    with loader(_series(3).to_numpy()) as elements:
        assert list(elements) == [0, 1, 2]


# ---- scikit-learn ------------------------------------------------------------------------------


def test_a_fitted_model_is_a_transform_and_an_element() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason=REASON.format("scikit-learn"))
    inputs = np.random.default_rng(0).normal(size=(400, 30))
    model = linear.Ridge().fit(inputs, inputs @ np.arange(30.0))

    def predict(index: int) -> Any:
        return model.predict(inputs[index : index + 100]), model

    with loader(range(3), predict, num_workers=2) as elements:
        for index, (predicted, got) in enumerate(elements):
            np.testing.assert_allclose(predicted, model.predict(inputs[index : index + 100]))
            assert got.coef_.tolist() == model.coef_.tolist()


def test_a_model_is_fitted_in_a_worker() -> None:
    pytest.importorskip("sklearn.cluster", reason=REASON.format("scikit-learn"))
    with loader([2, 3], _clustered, num_workers=2) as elements:
        for count, model in zip((2, 3), elements, strict=True):
            want = _clustered(count)
            assert len(model.cluster_centers_) == count
            np.testing.assert_allclose(model.cluster_centers_, want.cluster_centers_)
            assert model.labels_.tolist() == want.labels_.tolist()


def _clustered(count: int) -> Any:
    from sklearn.cluster import KMeans

    points = np.random.default_rng(1).normal(size=(300, 5))
    return KMeans(count, n_init=1, random_state=0).fit(points)
