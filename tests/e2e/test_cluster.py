"""Trials on the nodes of a Ray cluster: lost nodes, a killed coordinator, and kinds of hardware."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from optimizer.study.optuna_storage import open_storage
from tests.e2e import tiny
from tests.e2e.running import Optimizer, wait_until

pytest.importorskip("ray")

from tests.e2e.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DELAYS = [0, 40_000, 80_000, 120_000, 160_000, 200_000, 240_000, 280_000]


def slow_but_for_one() -> dict[str, object]:
    """A space whose winner is clear on a busy machine too: the others wait for batches in vain."""
    parameters = {
        "runtime": ["onnxruntime"],
        "precision": ["fp32"],
        "batching": [True],
        "max_batch_size": [64],
        "max_queue_delay_microseconds": DELAYS,
    }
    return tiny.space(parameters=parameters, budget={"trials": len(DELAYS)})


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    with ray_nodes(tmp_path / "nodes") as cluster:
        yield cluster


class Runs:
    """Runs of one space, with one cache; what failed tests leave of them is ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self._started: list[Optimizer] = []

    def start(self, space: Path, *options: object, poisoned: bool = False) -> Optimizer:
        cache = ("--cache", self.folder / "cache", "--sampler", "grid")
        environment = {}
        if poisoned:
            environment = {"PYTHONPATH": f"{_without_ray(self.folder)}:{Path.cwd()}"}
        run = Optimizer(["run", space, *cache, *options], self.folder, environment=environment)
        self._started.append(run)
        return run

    def study(self, name: str) -> StudyDirectory:
        return StudyDirectory(self.results / name)

    def end(self) -> None:
        for run in self._started:
            run.end()


def _without_ray(folder: Path) -> Path:
    """A folder with a package `ray` that cannot be imported."""
    package = folder / "poisoned" / "ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('ray was imported')\n")
    return package.parent


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    started = Runs(tmp_path)
    yield started
    started.end()


def records_of(study: StudyDirectory) -> list[TrialRecord]:
    return list(study.trials.read_all().values())


def assert_each_was_told_once(study: StudyDirectory) -> None:
    """Every record is of a trial that Optuna knows as complete, and no trial is left open."""
    told = optuna.load_study(study_name=study.name, storage=open_storage(study.journal, None))
    states = {trial.number: trial.state for trial in told.trials}
    records = records_of(study)
    assert {states[r.number] for r in records} == {optuna.trial.TrialState.COMPLETE}
    assert optuna.trial.TrialState.RUNNING not in states.values()
    positions = [record.told_position for record in records if record.told_position is not None]
    assert sorted(positions) == list(range(len(records)))


def best_delay(study: StudyDirectory) -> int:
    best = study.read_json(study.summary)["best"]
    [model] = best["config"]["models"]
    return int(model["batching"]["max_queue_delay_microseconds"])


def test_a_search_survives_the_loss_of_a_node_and_of_its_coordinator(
    nodes: RayNodes, runs: Runs, tmp_path: Path
) -> None:
    for name in ("one", "two", "three"):
        nodes.add(name)
    space = tiny.write_space(tmp_path, slow_but_for_one())
    study = runs.study("tiny")

    first = runs.start(space, "--cluster", nodes.address)
    first.wait_for(f"  3/{len(DELAYS)} ")
    nodes.kill("three")
    first.wait_for("worker three was lost")
    wait_until(lambda: len(records_of(study)) >= 3, "trials after the loss")
    assert first.process.poll() is None
    before = {record.number: record for record in records_of(study)}
    first.kill()
    wait_until(lambda: not nodes.processes_of_trials(), "no server and no load client is left")

    nodes.add("three")
    again = runs.start(space, "--cluster", nodes.address)
    assert again.process.wait(200) == 0, again.errors
    wait_until(lambda: not nodes.processes_of_trials(), "no server and no load client is left")

    records = records_of(study)
    assert {record.number: record for record in records}.items() >= before.items()
    measured = Counter(record.config for record in records if not record.unmeasured)
    assert set(measured.values()) == {1}
    assert len(measured) == len(DELAYS)
    assert {name for record in records for name in record.workers} == {"one", "two", "three"}
    assert_each_was_told_once(study)

    alone = runs.start(space, "--study", "alone", poisoned=True)
    assert alone.wait() == 0, alone.errors
    assert best_delay(runs.study("alone")) == best_delay(study) == 0


def test_each_type_of_accelerator_has_a_study_of_its_own(
    nodes: RayNodes, runs: Runs, tmp_path: Path
) -> None:
    # Custom resources of the names by which Ray knows accelerators stand in for GPUs.
    nodes.add("head")
    nodes.add("t4", {"accelerator_type:T4": 1})
    nodes.add("a10g", {"accelerator_type:A10G": 1})
    content = tiny.space(
        price={"by_accelerator": {"T4": {"instance_type": "one", "usd_per_hour": 0.5}}}
    )
    del content["price"]["instance_type"], content["price"]["usd_per_hour"]
    space = tiny.write_space(tmp_path, content)
    options = ("--cluster", nodes.address, "--each-accelerator-type")
    refused = runs.start(space, *options)
    assert refused.wait() == 2
    assert "price.by_accelerator: must have a price for each type" in refused.errors
    assert "none for A10G" in refused.errors

    content["price"]["by_accelerator"]["A10G"] = {"instance_type": "two", "usd_per_hour": 1.0}
    run = runs.start(tiny.write_space(tmp_path, content), *options)
    assert run.process.wait(200) == 0, run.errors
    assert "tiny-T4: " in run.output
    assert "tiny-A10G: " in run.output
    prices = {
        name: runs.study(name).read_json(runs.study(name).summary)["price"]["usd_per_hour"]
        for name in ("tiny-T4", "tiny-A10G")
    }
    assert prices == {"tiny-T4": 0.5, "tiny-A10G": 1.0}
    workers = {name for record in records_of(runs.study("tiny-T4")) for name in record.workers}
    assert workers == {"t4"}
    recommended = Optimizer(["recommend", "tiny-T4", "tiny-A10G"], tmp_path)
    assert recommended.wait() == 0, recommended.errors
    assert "one" in recommended.output
    assert "two" in recommended.output
