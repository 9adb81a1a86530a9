"""The one sentence of advice, from constructed figures, and the table around it."""

from __future__ import annotations

import json

import pytest

import stook
from stook import CopyProfile, LoaderProfile, StageProfile

COPY = CopyProfile("kept by 1 other reference", 100, 9_000_000, "['image']")


def made(
    *,
    kind: str = "processes",
    waits: dict[str, float] | None = None,
    waited: float = 0.0,
    elements: int = 100,
    stages: tuple[StageProfile, ...] = (),
    copies: tuple[CopyProfile, ...] = (),
    starting: float = 0.0,
    source_in_parent: bool = False,
) -> LoaderProfile:
    """Ten seconds of four workers."""
    return LoaderProfile(
        kind,
        4,
        10.0,
        elements,
        stages=stages,
        waits=waits or {},
        worker_seconds=40.0,
        consumer_seconds=waited,
        copies=copies,
        bytes_encoded=10_000_000,
        bytes_live=7_000_000,
        starting=starting,
        source_in_parent=source_in_parent,
    )


def stage(name: str, seconds: float) -> StageProfile:
    return StageProfile(name, 100, seconds, seconds / 40, 0)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (made(elements=0), ["nothing was delivered"]),
        (
            made(waits={"trainer": 36.4}),
            ["wait for the trainer 91 %", "fewer workers will do (1 instead of 4)"],
        ),
        (made(waits={"trainer": 20.0}), ["50 %", "(2 instead of 4)"]),
        (made(waits={"trainer": 4.0}, waited=0.5), ["5 % of the time: the workers keep up"]),
        (made(waits={"memory": 12.0}, waited=9.0), ["memory 30 %", "7 MB", "memory_limit"]),
        (
            made(waits={"jobs": 32.0}, waited=8.0, source_in_parent=True),
            ["waits for elements 80 %", "wait for jobs 80 %", "source is iterated"],
        ),
        (made(waits={"order": 20.0}, waited=8.0), ["50 %", "ordered=False"]),
        (
            made(waited=8.0, stages=(stage("source", 4.0), stage("resize", 16.0))),
            ["`resize` takes 80 % of the work of 4 workers"],
        ),
        (
            made(waited=8.0, stages=(stage("source", 4.0), stage("encode", 9.0)), copies=(COPY,)),
            ["the leaf ['image'] is copied, 100 times and 90 % of all bytes", "1 other reference"],
        ),
        (
            made(waited=8.0, stages=(stage("a", 3.0), stage("b", 3.0), stage("c", 3.0))),
            ["more than 4 workers would help"],
        ),
        (made(waited=8.0, starting=0.7), ["started in 70 %"]),
        (
            made(kind="inline", waited=6.0, stages=(stage("resize", 6.0),)),
            ["making elements takes 60 %", "`resize` (100 % of it)", "num_workers=1"],
        ),
        (made(kind="inline", waited=0.5), ["5 %", "would save little"]),
        (
            made(kind="threads", waited=8.0, stages=(stage("resize", 9.0),)),
            ["of the work of 4 threads"],
        ),
    ],
)
def test_the_figures_decide_what_is_advised(profile: LoaderProfile, words: list[str]) -> None:
    for word in words:
        assert word in profile.advice


def test_slow_jobs_of_an_indexed_source_are_the_end_of_the_pass_and_no_advice() -> None:
    profile = made(waits={"jobs": 32.0}, waited=8.0)
    assert "source" not in profile.advice


def test_the_table_says_what_the_object_holds() -> None:
    profile = made(
        waits={"memory": 1.0, "trainer": 10.0}, stages=(stage("resize", 20.0),), copies=(COPY,)
    )
    table = str(profile)
    assert "resize" in table
    assert "50.0 %" in table  # the stage
    assert "25.0 %" in table  # the trainer
    assert "100 x ['image'], 9.0 MB: kept by 1 other reference" in table
    assert table.splitlines()[-1].strip() == profile.advice
    read = json.loads(json.dumps(profile.to_dict()))
    assert read["advice"] == profile.advice
    assert read["stages"][0]["name"] == "resize"


def test_a_loader_that_is_not_measured_says_how_to() -> None:
    loader = stook.DataLoader(range(3))
    with pytest.raises(stook.StookError, match="enable_profiling=True"):
        loader.profile()
    with pytest.raises(stook.StookError, match="enable_profiling=True"):
        iter(loader).profile()
