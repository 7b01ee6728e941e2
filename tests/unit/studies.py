"""Studies without a server: a small space, made-up measurements, a function as the evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.atomic import write_json
from optimizer.load.capacity import CapacityProtocol
from optimizer.load.certification import CertificationTask
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import Slot
from optimizer.measurement.cost import Demand, Price, usd_per_million
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LevelKind, LoadLevel, Measurement, Slice, StreamLevel
from optimizer.measurement.resource_use import ClientUse
from optimizer.measurement.trial_record import Failure, Seconds, TrialRecord
from optimizer.search.loop import SearchLoop, SearchTime
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.samplers import SAMPLERS
from optimizer.search.surrogate.acquisition import AcquisitionPolicy, FixedForecast, no_forecast
from optimizer.search.trial_ledger import SearchedStudy
from optimizer.search.worker_pool import InlinePool, WorkerPool
from optimizer.simulator.forecast import Forecast
from optimizer.space_file.reader import Budget
from optimizer.study.context import StudyContext
from optimizer.study.decision import ConfirmedCapacity, decide
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Watcher, to_all
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.search_status import SearchEnd
from optimizer.study.searched_space import SearchedSpace, write_searched
from optimizer.study.trial_records import measured_record, objective_names

# At 100 requests a second a million takes 10,000 s, which cost a dollar.
PRICE = Price("test.large", 0.36, source="the tests", as_of="2026-01-01")
DEMAND = Demand(500.0)
LIMIT_MS = 100.0
SETTING = StudyContext(
    PRICE, DEMAND, ("latency.bert",), Slot((0, 1), (0, 1)), machine="here", confirm_requests=5000
)

MACHINE = Machine("Some CPU", 2, 24, ("avx2",), (("numpy", "2"),), "3.11.7", "Linux x86_64")
HARDWARE = Hardware(cores=2, memory_mib=24_000)

VALUES: Mapping[str, Sequence[Value]] = {
    "runtime": ("pytorch", "openvino"),
    "precision": ("fp32", "int8"),
    "batching": (False, True),
    "max_batch_size": (4, 8, 16),
    "preferred_batch_sizes": ("none",),
    "max_queue_delay_us": (0, 500),
    "instance_count": (1, 2),
    "intra_op_threads": (1, 2),
    "padding": ("max",),
}


def small_space(
    *, hardware: Hardware = HARDWARE, conditions: tuple[str, ...] = (), **values: Sequence[Value]
) -> SearchSpace:
    """63 points; any list of values can be replaced by name."""
    parameters = parameters_in_order("bert", {**VALUES, **values})
    return SearchSpace(parameters, hardware, Limits(conditions))


def begin_study(
    directory: StudyDirectory, searched: SearchedSpace, machine: Machine = MACHINE
) -> None:
    """What a study keeps of itself before it measures anything."""
    write_searched(directory, searched)
    limits = {stream.name: stream.limit.latency_ms for stream in searched.workload.streams}
    write_json(directory.space, {"space": {"limit": limits}, "machine": machine.to_json()})


def four_points() -> SearchSpace:
    """One runtime in two precisions, with one or two instances and no batching."""
    return small_space(
        runtime=("openvino",),
        batching=(False,),
        max_batch_size=(4,),
        max_queue_delay_us=(0,),
        intra_op_threads=(1,),
    )


def ten_points() -> SearchSpace:
    """One artefact with five batch sizes, on one instance or two with all cores."""
    return small_space(
        runtime=("onnxruntime",),
        precision=("int8",),
        batching=(True,),
        max_batch_size=(4, 8, 16, 32, 64),
        max_queue_delay_us=(0,),
        conditions=("instance_count * intra_op_threads == cores",),
    )


def level(
    load_factor: float,
    p95_ms: float = 50.0,
    *,
    demand: float = DEMAND.requests_per_second,
    kind: LevelKind = "open_loop",
) -> LoadLevel:
    """One stream; p50 is half of p95 and p99 a fifth above it."""
    rate = load_factor * demand
    shares = {50.0: 0.5, 95.0: 1.0, 99.0: 1.2}
    stream = StreamLevel(
        name="bert",
        offered_per_second=rate,
        achieved_per_second=rate,
        sent=1000,
        completed=1000,
        errors=0,
        first_error=None,
        mean_ms=p95_ms / 2,
        mean_from_send_ms=p95_ms / 2,
        latencies=tuple(
            Percentile(p, share * p95_ms, share * p95_ms, share * p95_ms, 1000, 1000)
            for p, share in shares.items()
        ),
        limit_percentile=95.0,
        limit_ms=LIMIT_MS,
    )
    slices = tuple(Slice(round(rate * share / 4), p95_ms) for share in (0.99, 1.01, 1.0, 1.0))
    client = ClientUse(1, 0.1, 50.0, 0.0)
    return LoadLevel(kind, load_factor, 1.0, (stream,), (), client, slices=slices)


def measured(
    capacity: float,
    p95_ms: float = 50.0,
    *,
    demand: float = DEMAND.requests_per_second,
    high: float | None = None,
) -> Measurement:
    """A capacity (requests/s) next to saturation; `high` bounds it from above."""
    factor = capacity / demand
    levels = (
        level(1.05 * factor, demand=demand, kind="saturation"),
        level(factor, p95_ms, demand=demand),
    )
    upper = (high if high is not None else capacity) / demand
    return Measurement(levels, factor, factor, upper, demand, "met the limits")


SECONDS = Seconds(measuring=2.0, serving=1.0)


def ok(capacity: float, p95_ms: float = 50.0) -> Evaluation:
    measurement = measured(capacity, p95_ms)
    return Evaluation(
        "ok",
        measurement.ended,
        measurement,
        limit_overshoot=p95_ms / LIMIT_MS - 1,
        seconds=SECONDS,
    )


def infeasible(saturation: float, p95_ms: float = 150.0) -> Evaluation:
    demand = DEMAND.requests_per_second
    floor = 0.05 * saturation / demand
    levels = (level(saturation / demand, kind="saturation"), level(floor, p95_ms))
    measurement = Measurement(levels, 0.0, 0.0, floor, demand, "over the limit at the floor")
    return Evaluation(
        "infeasible",
        measurement.ended,
        measurement,
        limit_overshoot=p95_ms / LIMIT_MS - 1,
        seconds=SECONDS,
    )


def bounded(saturation: float) -> Evaluation:
    demand = DEMAND.requests_per_second
    factor = saturation / demand
    levels = (level(factor, kind="saturation"),)
    measurement = Measurement(levels, 0.0, 0.0, factor, demand, "saturates below the bound")
    return Evaluation(
        "bounded",
        measurement.ended,
        measurement,
        limit_overshoot=0.0,
        seconds=SECONDS,
    )


def failed(
    reason: str = "it broke", *, transient: bool = False, out_of_memory: bool = False
) -> Evaluation:
    kind = "LoadTestFailure" if transient else "ModelLoadFailure"
    return Evaluation("failed", reason, failure=Failure(kind, transient, out_of_memory))


def capacity_of(config: ServingConfig) -> float:
    """A made-up truth: INT8, OpenVINO, larger batches and more threads serve more."""
    (model,) = config.models
    speed = {"fp32": 40.0, "fp16": 50.0, "bf16": 60.0, "int8": 90.0}[model.artifact.precision]
    runtime = {"pytorch": 1.0, "onnxruntime": 1.3, "openvino": 1.6}[model.artifact.runtime]
    threads = sum(group.count * group.threads for group in model.groups)
    delay = model.batching.max_queue_delay_us if model.batching is not None else 0
    size = float(model.max_batch_size)
    return speed * runtime * math.pow(size, 0.3) * math.pow(threads, 0.7) * (1 - delay / 1e5)


def as_fast_as_it_is(config: ServingConfig) -> Evaluation:
    return ok(capacity_of(config))


@dataclass
class FakeEvaluator:
    """Answers with functions of the configuration; keeps what it was asked.

    `held` gets the configuration, the load factor asked for, and how often it was asked before;
    `pace` the number of the reference run.
    """

    answer: Callable[[ServingConfig], Evaluation] = as_fast_as_it_is
    held: Callable[[ServingConfig, float, int], Evaluation] = lambda config, load, _: ok(
        load * DEMAND.requests_per_second
    )
    pace: Callable[[int], Evaluation] = lambda _: bounded(100)
    evaluated: list[ServingConfig] = field(default_factory=list)
    saturated: list[ServingConfig] = field(default_factory=list)
    bounds: list[float | None] = field(default_factory=list)
    expected: list[float | None] = field(default_factory=list)
    confirmed: list[ServingConfig] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    loads: list[tuple[float, float]] = field(default_factory=list)

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        assert slot == SETTING.slot
        self.evaluated.append(config)
        self.bounds.append(prune_below)
        self.expected.append(expected_share)
        return self.answer(config)

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        assert slot == SETTING.slot
        self.saturated.append(config)
        return self.pace(len(self.saturated))

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        return self.saturate(config, slot)

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        assert slot == SETTING.slot
        before = self.confirmed.count(config)
        self.confirmed.append(config)
        self.requests.append(task.requests)
        self.loads.append((task.load_factor, task.at_demand(task.load_factor)))
        return self.held(config, task.load_factor, before)


def record_of(number: int, config: ServingConfig, evaluation: Evaluation) -> TrialRecord:
    """The record that the search would write."""
    measurement = evaluation.measurement
    told: float | None = None
    if measurement is not None:
        rate = measurement.capacity_per_second or evaluation.saturation_per_second or 0.0
        told = usd_per_million(PRICE.usd_per_hour, rate)
    record = measured_record(number, config, evaluation, SETTING)
    return replace(record, told_value=told, seconds=replace(evaluation.seconds, total=4.0))


def found_by(record: TrialRecord) -> ConfirmedCapacity:
    """What one trial alone recommends."""
    [best] = decide([record], [], PRICE, DEMAND).ranking
    return best


def history_of(*pairs: tuple[ServingConfig, Evaluation]) -> History:
    """Trials in this order, numbered from 0."""
    return History({n: record_of(n, *pair) for n, pair in enumerate(pairs)})


def policy_of(
    space: SearchSpace, history: History, *, forecast: Forecast | None = None, seed: int = 0
) -> AcquisitionPolicy:
    """A policy that expects the same of every point where nothing is forecast."""
    source = FixedForecast(forecast) if forecast is not None else no_forecast(space)
    return AcquisitionPolicy(space, history, source, SETTING, CapacityProtocol(), seed)


def open_study(
    folder: Path,
    space: SearchSpace,
    *,
    sampler: str = "random",
    seed: int = 0,
    policy: AcquisitionPolicy | None = None,
    extra_limits_ms: tuple[float, ...] = (),
    storage: str | None = None,
) -> OptunaStudy:
    """The study whose journal lies in `folder`, or that is in a database.

    Its policy has seen nothing where none is given.
    """
    journal = StudyDirectory(folder).journal
    strategy = SAMPLERS[sampler](policy or policy_of(space, History({}), seed=seed))
    names = objective_names(extra_limits_ms)
    return OptunaStudy("test", journal, storage, space, strategy.make_sampler, seed, names)


@dataclass
class Search:
    """A study in a folder that can be run, left and run again; in this process without a pool."""

    folder: Path
    space: SearchSpace
    evaluator: FakeEvaluator
    events: list[Event] = field(default_factory=list)
    sampler: str = "random"
    forecast: Forecast | None = None
    context: StudyContext = SETTING
    watchers: list[Watcher] = field(default_factory=list)
    pool: WorkerPool | None = None
    watcher_of_study: Callable[[OptunaStudy], Watcher] = lambda _: lambda _: None

    @property
    def directory(self) -> StudyDirectory:
        return StudyDirectory(self.folder)

    @property
    def records(self) -> list[TrialRecord]:
        return list(self.directory.trials.read_all().values())

    def opened(self) -> tuple[OptunaStudy, History]:
        """What a new process finds in the folder."""
        study, history, _ = self._opened()
        return study, history

    def _opened(self) -> tuple[OptunaStudy, History, AcquisitionPolicy]:
        records = self.directory.trials.read_all()
        history = History(records)
        policy = policy_of(self.space, history, forecast=self.forecast)
        extra_limits_ms = self.context.extra_limits_ms
        study = open_study(
            self.folder,
            self.space,
            sampler=self.sampler,
            policy=policy,
            extra_limits_ms=extra_limits_ms,
        )
        study.reconcile(records)
        return study, history, policy

    def loop(self, study: OptunaStudy, history: History) -> SearchLoop:
        watch = to_all(self.events.append, *self.watchers, self.watcher_of_study(study))
        searched = SearchedStudy(study, self.space, self.directory, history, self.context, watch)
        pool = self.pool or InlinePool(self.evaluator, self.context.slot)
        return SearchLoop(searched, RunningTasks(pool, watch))

    def run(self, trials: int, time: SearchTime | None = None) -> SearchEnd:
        """Start, or go on as a new process would."""
        study, history, policy = self._opened()
        strategy = SAMPLERS[self.sampler](policy)
        budget = Budget(trials, 90.0 if time is not None else math.inf)
        return self.loop(study, history).run(
            budget, strategy.advise, time, explain=strategy.explain
        )
