"""Trials on the nodes of a Ray cluster: lost nodes, a killed coordinator, and kinds of hardware."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import RequirementError
from optimizer.machine.slots import Slot, local_slot
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.worker_pool import Task
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, WorkerLost
from optimizer.study.optuna_storage import open_storage
from tests.contracts.worker_pool import WorkerPoolContract, all_ends
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer
from tests.e2e.running import ROOT, wait_until
from tests.unit.studies import small_space
from tests.unit.tables import recorded_table

pytest.importorskip("ray")

from optimizer.cluster.ray_cluster import connected, offered_slots
from optimizer.cluster.ray_evaluator import RayEvaluator
from optimizer.cluster.ray_pool import RayPool
from optimizer.cluster.ray_worker import NodeContext
from tests.e2e.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPACE = small_space()
NAMES = ("tiny-T4", "tiny-A10G")
PATIENCE = 240.0
DELAYS = [200_000 * number for number in range(5)]


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
        # The levels after the saturation leave time to strike.
        measurement={"check_seconds": 0.6},
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
    return int(model["batching"]["max_queue_delay_us"])


def test_a_search_survives_the_loss_of_a_node_and_of_its_coordinator(
    nodes: RayNodes, start: StartOptimizer, tmp_path: Path
) -> None:
    nodes.add("two")
    nodes.add("three")
    space = tiny.write_space(tmp_path, waiting_for_batches())
    study = StudyDirectory(tmp_path / "results" / "tiny")
    options = ("--cluster", nodes.address, "--sampler", "grid")

    first = start(space, *options)
    first.wait_for("three: saturation:", PATIENCE)
    nodes.kill("three")
    first.wait_for("worker three was lost", PATIENCE)
    wait_until(lambda: any(len(r.workers) > 1 for r in records_of(study)), "its trial")
    assert first.process.poll() is None
    before = content_of(study)
    first.kill()
    nodes.wait_for_no_trial()

    nodes.add("three")
    again = start(space, *options)
    assert again.process.wait(PATIENCE) == 0, again.errors
    nodes.wait_for_no_trial()

    records = records_of(study)
    assert content_of(study).items() >= before.items()
    assert Counter(r.config for r in records if not r.unmeasured).most_common()[0][1] == 1
    assert len(records) == len(DELAYS)
    [lost] = [record.workers for record in records if len(record.workers) > 1]
    assert lost[0] == "three"
    assert lost[1] in ("one", "two")
    assert_each_was_told_once(study)

    own = ("--study", "alone", "--sampler", "grid", "--trials", 2)
    alone = start(space, *own, environment=without_ray(tmp_path))
    assert alone.wait(PATIENCE) == 0, alone.errors
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
    assert run.process.wait(PATIENCE) == 0, run.errors
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


@dataclass(frozen=True)
class OpenRecorded:
    """Opens an evaluator that answers from a table, as on every node."""

    node_that_differs: str = ""

    @contextmanager
    def __call__(self, node: NodeContext) -> Iterator[tuple[RecordedEvaluator, str]]:
        if node.slot.name == self.node_that_differs:
            raise RequirementError("it is of another kind: cpu is B, the study's is A")
        yield RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0)), node.slot.name


def process_id(_: RecordedEvaluator, __: Slot) -> int:
    return os.getpid()


@pytest.fixture(scope="class")
def connection(head: RayNodes) -> Iterator[None]:
    head.add("four")
    with connected(head.address):
        # Ray takes a while to know that the nodes of other tests are gone.
        wait_until(lambda: len(offered_slots({}, None)) == 2, "two nodes", PATIENCE)
        yield
    head.kill_all_but("one")


@pytest.fixture(scope="class")
def events() -> list[Event]:
    return []


def advance_until(pool: RayPool, condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: {pool.workers}"
        pool._actors.advance(0.5)


@pytest.fixture(scope="class")
def pool(connection: None, events: list[Event]) -> Iterator[RayPool]:
    """A pool whose workers take seconds to start; every test leaves all of them idle."""
    with RayPool(lambda: offered_slots({}, None), events.append) as pool:
        pool.open_one(OpenRecorded())
        pool.open_others(OpenRecorded())
        advance_until(pool, lambda: pool.idle == 2, "two idle workers")
        yield pool


class TestRayPool(WorkerPoolContract):
    @pytest.fixture
    def config(self) -> ServingConfig:
        return SPACE.config(SPACE.baseline)

    def test_a_worker_that_dies_loses_its_task_and_is_started_again(
        self, pool: RayPool, config: ServingConfig, events: list[Event]
    ) -> None:
        with pool.searching():
            os.kill(pool.evaluate(process_id), signal.SIGKILL)
            pool.submit(Task(7, 1, config))
            end = pool.next_end(PATIENCE)
            assert end is not None
            assert (end.task.number, end.evaluation) == (7, None)
            assert "its process or its node is gone" in end.lost
            lost = [event for event in events if isinstance(event, WorkerLost)]
            assert [(event.worker, event.number) for event in lost] == [(end.worker, 7)]
            advance_until(pool, lambda: pool.idle == 2, "the worker again")
            assert {each.name: each.losses for each in pool.workers}[end.worker] == 1
            assert all_ends(pool) == []

    def test_alone_it_measures_on_another_worker_where_one_is_lost(
        self, pool: RayPool, config: ServingConfig
    ) -> None:
        os.kill(pool.evaluate(process_id), signal.SIGKILL)
        evaluation = RayEvaluator(pool).saturate(config, local_slot())
        assert evaluation.outcome == "bounded"
        advance_until(pool, lambda: pool.idle == 2, "the worker again")


@pytest.mark.usefixtures("connection")
class TestOtherKinds:
    def test_a_node_of_another_kind_takes_no_part_and_is_named(self, events: list[Event]) -> None:
        opening = OpenRecorded(node_that_differs="four")
        with RayPool(lambda: offered_slots({}, None), events.append) as pool:
            advance_until(pool, lambda: len(pool.workers) == 2, "two workers")
            with pytest.raises(RequirementError) as refused:
                pool.on_a_node(_nothing, refuse=lambda _: "it is of another kind")
            assert "no node of the cluster runs a worker" in str(refused.value)
            assert "four: it is of another kind" in str(refused.value)
        with RayPool(lambda: offered_slots({}, None), events.append) as pool:
            pool.open_others(opening)
            advance_until(pool, lambda: pool.idle == 1 == len(pool.workers), "one worker")
        text = "node four is not used: it is of another kind: cpu is B, the study's is A"
        assert Note(text, warning=True) in events


def _nothing(_: NodeContext) -> None:
    """Return nothing."""
