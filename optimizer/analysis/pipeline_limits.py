"""Which step limits a saturated pipeline, what it loses to the others, and what widening it gives.

Everything here is computed from the steps' own executions. It assumes that an instance keeps its
times whatever the others do, so where steps share cores or a GPU, widening one gives less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.measurement.trial_record import TrialRecord
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.study.pipeline_times import (
    PipelineTimes,
    StepTimes,
    execution_ms,
    pipeline_times,
)

BUSY = 0.6
"""Share of the time; where no step is busier at saturation, none limits the pipeline."""

NEXT_BUSIEST = 0.85
"""Of the busiest step's share; a step that is nearly as busy limits the pipeline as well."""

_FULL_SHARE = 0.5
"""Share of the inferences in batches of max_batch_size, without which a larger one is not used."""

_LEAST_SHARE = 0.02
"""Share of the inferences; rarer batch sizes are mostly the first and the last of a level."""


@dataclass(frozen=True)
class StepCapacity:
    """What the instances of one step serve when they always have work.

    Attributes:
        batch_size: the executed size at which they serve most.
        per_second: requests to the pipeline.
    """

    model: str
    batch_size: int
    per_second: float


@dataclass(frozen=True)
class Widening:
    """A change of the bottleneck, and what the pipeline saturates at then: computed, not measured.

    Attributes:
        change: such as "2 instances" or "max_batch_size 16".
        per_second: at most: what the wider step serves when it is always busy, or what the slowest
            of the others serves alone, as far as its executions show.
        next_limit: that other step; None where the wider step still is the slowest.
    """

    change: str
    per_second: float
    next_limit: str | None


@dataclass(frozen=True)
class MeasuredWidening:
    """A trial that serves the bottleneck otherwise, and every other step in the same way."""

    trial: int
    serving: ModelServing
    per_second: float


@dataclass(frozen=True)
class PipelineLimits:
    """What limits a pipeline at saturation.

    Attributes:
        capacities: of each step that executed anything.
        server_cores: mean number of cores that the server used; None where unknown.
        cores: that server and client share.
        widened: what other trials of a study measured, the best first.
    """

    config: ServingConfig
    times: PipelineTimes
    capacities: tuple[StepCapacity, ...]
    splits: Mapping[str, ServerSplit]
    server_cores: float | None = None
    cores: int | None = None
    widened: tuple[MeasuredWidening, ...] = ()

    @property
    def by_busy(self) -> list[StepTimes]:
        """The steps, the busiest first."""
        return sorted(self.times.steps, key=lambda step: -step.busy)

    @property
    def bottleneck(self) -> str | None:
        """The step whose instances are the busiest; None where that is not clear."""
        first, *others = self.by_busy
        clear = all(step.busy <= NEXT_BUSIEST * first.busy for step in others)
        return first.model if clear and first.busy >= BUSY else None

    @property
    def slowest(self) -> StepCapacity:
        """The step that serves the least alone."""
        return min(self.capacities, key=lambda step: step.per_second)

    @property
    def loss(self) -> float:
        """Share of the slowest step's capacity that the pipeline does not reach; at least 0."""
        return max(0.0, 1 - self.times.per_second / self.slowest.per_second)

    @cached_property
    def widenings(self) -> tuple[Widening, ...]:
        """What widening the bottleneck gives; empty without one."""
        if self.bottleneck is None:
            return ()
        return tuple(self._widening(*wider) for wider in self._wider(self.bottleneck))

    def _wider(self, name: str) -> Iterator[tuple[str, float]]:
        """Yield changes of a step, with the factor by which its capacity grows."""
        model = next(model for model in self.config.models if model.name == name)
        own = next(step for step in self.times.steps if step.model == name)
        groups, instances = len(model.groups), model.most_instances
        if groups == 1:
            devices = own.instances // instances
            more = f"{instances + 1} instances{' on each device' if devices > 1 else ''}"
            yield more, (instances + 1) / instances
        size = 2 * model.max_batch_size
        if model.batching is not None and self._fills(model):
            factor = _batch_factor(self.splits[name], size)
            if factor is not None:
                yield f"max_batch_size {size}", factor

    def _fills(self, model: ModelServing) -> bool:
        """Return whether most inferences are in the largest batches."""
        split = self.splits[model.name]
        full = (p.inferences for p in split.batches if p.batch_size == model.max_batch_size)
        return sum(full) >= _FULL_SHARE * split.inferences

    def _widening(self, change: str, factor: float) -> Widening:
        own = self.by_busy[0]
        others = [step for step in self.capacities if step.model != own.model]
        second = min(others, key=lambda step: step.per_second, default=None)
        wider = factor * self.times.per_second / min(1.0, own.busy)
        if second is not None and second.per_second < wider:
            return Widening(change, second.per_second, second.model)
        return Widening(change, wider, None)


def pipeline_limits(config: ServingConfig, target: str, level: LoadLevel) -> PipelineLimits | None:
    """Return what limits a pipeline at a saturated level.

    None for a level of another kind, and without the server's statistics.
    """
    times = pipeline_times(config, target, level) if level.kind == "saturation" else None
    if times is None or not any(step.busy for step in times.steps):
        return None
    splits = {split.model: split for split in level.server}
    received = splits[target].requests
    capacities = tuple(
        _capacity(step, splits[step.model], received) for step in times.steps if step.busy
    )
    machine = level.machine
    cpu_seconds = machine.server_cpu_seconds if machine is not None else None
    return PipelineLimits(
        config,
        times,
        capacities,
        splits,
        cpu_seconds / machine.seconds if machine and cpu_seconds is not None else None,
        machine.cores if machine is not None else None,
    )


def with_measured(limits: PipelineLimits, trials: Iterable[TrialRecord]) -> PipelineLimits:
    """Return the same with what other trials measured of a wider bottleneck."""
    name = limits.bottleneck
    if name is None:
        return limits
    others = _without(limits.config, name)
    widened = [
        MeasuredWidening(trial.number, serving, level.achieved_per_second)
        for trial in trials
        if trial.measurement is not None and trial.config != limits.config
        for serving in trial.config.models
        if serving.name == name and _without(trial.config, name) == others
        for level in trial.measurement.levels
        if level.kind == "saturation" and level.achieved_per_second > limits.times.per_second
    ]
    return replace(limits, widened=tuple(sorted(widened, key=lambda each: -each.per_second)))


def _without(config: ServingConfig, name: str) -> ServingConfig:
    return replace(config, models=tuple(m for m in config.models if m.name != name))


def _capacity(step: StepTimes, split: ServerSplit, received: int) -> StepCapacity:
    """Return what a step's instances serve at the best of the sizes that were executed."""
    best = _best(split)
    inferences_per_second = 1000 * step.instances * best.batch_size / execution_ms(split, best)
    inferences_each = split.inferences / received
    return StepCapacity(step.model, best.batch_size, inferences_per_second / inferences_each)


def _frequent(split: ServerSplit) -> list[BatchPoint]:
    least = _LEAST_SHARE * split.inferences
    return [point for point in split.batches if point.inferences >= least]


def _best(split: ServerSplit) -> BatchPoint:
    return max(_frequent(split), key=lambda point: point.batch_size / execution_ms(split, point))


def _batch_factor(split: ServerSplit, size: int) -> float | None:
    """Return how much more an instance serves in larger batches, by a straight line.

    None where fewer than two batch sizes were executed often, which show no line.
    """
    frequent, best = _frequent(split), _best(split)
    if len(frequent) < 2:
        return None
    curve = ServiceCurve(
        tuple(point.batch_size for point in frequent),
        tuple(execution_ms(split, point) for point in frequent),
    )
    larger_ms = float(curve.table_ms(size)[size])
    return size / larger_ms * execution_ms(split, best) / best.batch_size
