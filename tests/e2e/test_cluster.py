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
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import ROOT, wait_until

pytest.importorskip("ray")

from tests.e2e.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = ("tiny-T4", "tiny-A10G")
DELAYS = [60_000 * number for number in range(8)]


def waiting_for_batches() -> dict[str, object]:
    """A space whose winner is clear on a busy machine too: one instance serves the demand in any
    case, and a queue delay only adds to its latency.
    """
    parameters = {
        "runtime": ["onnxruntime"],
        "precision": ["fp32"],
        "batching": [True],
        "max_batch_size": [64],
        "max_queue_delay_microseconds": DELAYS,
    }
    return tiny.space(
        parameters=parameters,
        budget={"trials": len(DELAYS)},
        traffic={"demand_per_second": 20},
        # The levels after the saturation leave time to strike.
        measurement={"check_seconds": 1.0},
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A cluster of one node, which takes longest to start."""
    with ray_nodes(tmp_path_factory.mktemp("nodes")) as cluster:
        cluster.add("one")
        yield cluster


@pytest.fixture
def nodes(head: RayNodes) -> Iterator[RayNodes]:
    """A cluster to which a test may add nodes."""
    yield head
    head.kill_all_but("one")


def without_ray(folder: Path) -> dict[str, str]:
    """The environment of a process that ends where it imports Ray."""
    package = folder / "poisoned" / "ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('ray was imported')\n")
    return {"PYTHONPATH": f"{package.parent}:{ROOT}"}


def records_of(study: StudyDirectory) -> list[TrialRecord]:
    return list(study.trials.read_all().values())


def content_of(study: StudyDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.trials.folder.glob("*.json")}


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
    nodes: RayNodes, start: StartOptimizer, tmp_path: Path
) -> None:
    nodes.add("two")
    nodes.add("three")
    space = tiny.write_space(tmp_path, waiting_for_batches())
    study = StudyDirectory(tmp_path / "results" / "tiny")
    options = ("--cluster", nodes.address, "--sampler", "grid")

    first = start(space, *options)
    first.wait_for("three: saturation:")
    nodes.kill("three")
    first.wait_for("worker three was lost")
    wait_until(lambda: any(len(r.workers) > 1 for r in records_of(study)), "its trial")
    assert first.process.poll() is None
    before = content_of(study)
    first.kill()
    nodes.wait_for_no_trial()

    nodes.add("three")
    again = start(space, *options)
    assert again.process.wait(200) == 0, again.errors
    nodes.wait_for_no_trial()

    records = records_of(study)
    assert content_of(study).items() >= before.items()
    assert Counter(r.config for r in records if not r.unmeasured).most_common()[0][1] == 1
    assert len(records) == len(DELAYS)
    assert {name for record in records for name in record.workers} == {"one", "two", "three"}
    assert_each_was_told_once(study)

    alone = start(space, "--study", "alone", environment=without_ray(tmp_path))
    assert alone.wait() == 0, alone.errors
    assert best_delay(StudyDirectory(tmp_path / "results" / "alone")) == 0
    assert best_delay(study) == 0


def test_each_type_of_accelerator_has_a_study_of_its_own(
    nodes: RayNodes, start: StartOptimizer, tmp_path: Path
) -> None:
    # Custom resources of the names by which Ray knows accelerators stand in for GPUs.
    nodes.add("t4", {"accelerator_type:T4": 1})
    nodes.add("a10g", {"accelerator_type:A10G": 1})
    content = tiny.space(
        price={"by_accelerator": {"T4": {"instance_type": "one", "usd_per_hour": 0.5}}}
    )
    del content["price"]["instance_type"], content["price"]["usd_per_hour"]
    space = tiny.write_space(tmp_path, content)
    options = ("--cluster", nodes.address, "--each-accelerator-type")
    refused = start(space, *options)
    assert refused.wait() == 2
    assert "price.by_accelerator: must have a price for each type" in refused.errors
    assert "none for A10G" in refused.errors

    content["price"]["by_accelerator"]["A10G"] = {"instance_type": "two", "usd_per_hour": 1.0}
    run = start(tiny.write_space(tmp_path, content), *options)
    assert run.process.wait(200) == 0, run.errors
    assert "tiny-T4: " in run.output
    assert "tiny-A10G: " in run.output
    studies = {name: StudyDirectory(tmp_path / "results" / name) for name in NAMES}
    prices = [s.read_json(s.summary)["price"]["usd_per_hour"] for s in studies.values()]
    assert prices == [0.5, 1.0]
    workers = {name: [r.workers for r in records_of(own)] for name, own in studies.items()}
    assert workers == {"tiny-T4": [("t4",)], "tiny-A10G": [("a10g",)]}
    recommended = start("tiny-T4", "tiny-A10G", command="recommend")
    assert recommended.wait() == 0, recommended.errors
    assert "one" in recommended.output
    assert "two" in recommended.output
