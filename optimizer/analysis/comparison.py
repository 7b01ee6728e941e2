"""Studies compared: their machines, their best configurations, and what both measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.analysis.capacity_ratio import (
    Estimate,
    Ratio,
    estimate_of_rounds,
    estimate_of_trial,
    ratio_of,
)
from optimizer.analysis.study_reading import StudyReading
from optimizer.analysis.summary import StudySummary
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity, certified_rounds
from optimizer.study.warm_start import unequal


@dataclass(frozen=True)
class SpaceDifference:
    """Something in which studies differ, with the value that each has, in their order."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A configuration of one study.

    Attributes:
        estimate: of its capacity, by all that was measured of it; the certified capacity, which is
            in `finding`, is the least that every round held.
        ratio: of the estimate to that of the first study; None in the first, and where that has
            nothing to compare with.
    """

    finding: ConfirmedCapacity
    estimate: Estimate
    ratio: Ratio | None


@dataclass(frozen=True)
class ComparedStudy:
    """One study among others.

    Attributes:
        drift: largest one of its machine that the study recorded, None where it saw none.
        ended: whether it came to its summary.
        baseline, best: at its own price and demand; None where nothing is within the limits.
        recounted: the best at its own price and the first study's demand; None where that is its
            own demand, or nothing is within the limits.
    """

    name: str
    reading: StudyReading
    drift: float | None
    ended: bool
    baseline: Entry | None
    best: Entry | None
    recounted: ConfirmedCapacity | None


@dataclass(frozen=True)
class SharedConfiguration:
    """A configuration that two studies measured, in a trial of its own in each."""

    config: ServingConfig
    first_per_second: float
    other_per_second: float
    ratio: Ratio


@dataclass(frozen=True)
class Shared:
    """What the first study and another one both measured.

    Attributes:
        other: name of the other study.
        configurations: that met the limits in both, the largest ratio first.
        in_one_alone: configurations that were measured in both and met the limits in one.
    """

    other: str
    configurations: tuple[SharedConfiguration, ...]
    in_one_alone: int

    @property
    def median(self) -> float | None:
        """Median ratio of the other's capacity to the first's; None where nothing is shared."""
        ratios = [each.ratio.value for each in self.configurations]
        return statistics.median(ratios) if ratios else None


@dataclass(frozen=True)
class Comparison:
    """Studies side by side, all relative to the first.

    Attributes:
        machine, settings: differences alone.
        shared: one for each study but the first.
    """

    studies: tuple[ComparedStudy, ...]
    machine: tuple[SpaceDifference, ...]
    settings: tuple[SpaceDifference, ...]
    shared: tuple[Shared, ...]

    @property
    def same_demand(self) -> bool:
        """Whether all studies were run for the same demand."""
        return all(study.recounted is None for study in self.studies)


@dataclass(frozen=True)
class StudyToCompare:
    """What is compared.

    Attributes:
        name: that no other one has.
        summary: of the study, None where it has not ended.
    """

    name: str
    reading: StudyReading
    summary: StudySummary | None

    @property
    def drift(self) -> float | None:
        """Largest drift of the machine; studies of earlier versions recorded none."""
        return self.summary.pace.largest_change if self.summary is not None else None


def compare(studies: Sequence[StudyToCompare]) -> Comparison:
    """Compare studies that asked the same, of which there are two at least."""
    readings = [study.reading for study in studies]
    first, *others = studies
    reference = _compared(first, None, first.reading.searched.demand)
    return Comparison(
        studies=(
            reference,
            *(_compared(each, reference, first.reading.searched.demand) for each in others),
        ),
        machine=tuple(_machine_differences([each.machine for each in readings])),
        settings=tuple(_space_differences([each.content for each in readings])),
        shared=tuple(_shared(first, other) for other in others),
    )


def _compared(study: StudyToCompare, first: ComparedStudy | None, demand: Demand) -> ComparedStudy:
    reading = study.reading
    own = reading.searched
    decision = reading.own_decision
    baseline, best = decision.entry_of(reading.baseline), decision.best
    other_demand = own.demand != demand
    drift = _larger(study.drift, first.drift if first is not None else None)

    def entry(
        finding: ConfirmedCapacity | None, of: Callable[[ComparedStudy], Entry | None]
    ) -> Entry | None:
        if finding is None:
            return None
        estimate = _estimate(reading, finding)
        beside = of(first) if first is not None else None
        ratio = ratio_of(estimate, beside.estimate, drift) if beside is not None else None
        return Entry(finding, estimate, ratio)

    return ComparedStudy(
        name=study.name,
        reading=reading,
        drift=study.drift,
        ended=study.summary is not None,
        baseline=entry(baseline, lambda study: study.baseline),
        best=entry(best, lambda study: study.best),
        recounted=reading.decision(own.price, demand).best if other_demand else None,
    )


def _larger(one: float | None, other: float | None) -> float:
    """Return the larger of two relative changes, as an increase: halving counts as doubling."""
    return math.expm1(max(abs(math.log1p(change or 0.0)) for change in (one, other)))


def _estimate(reading: StudyReading, finding: ConfirmedCapacity) -> Estimate:
    if finding.confirmed:
        return estimate_of_rounds(certified_rounds(finding.config, reading.confirmations))
    return estimate_of_trial(finding.candidate.measurement)


def _shared(first: StudyToCompare, other: StudyToCompare) -> Shared:
    own, beside = _trials(first.reading.trials), _trials(other.reading.trials)
    both = own.keys() & beside.keys()
    drift = _larger(first.drift, other.drift)
    shared: list[SharedConfiguration] = []
    in_one_alone = 0
    for config in both:
        one, two = _capacity(own[config]), _capacity(beside[config])
        if one is not None and two is not None:
            ratio = ratio_of(two, one, drift)
            shared.append(SharedConfiguration(config, one.per_second, two.per_second, ratio))
        elif one is not None or two is not None:
            in_one_alone += 1
    # By the digest among equals: sets have no order.
    shared.sort(key=lambda each: (-each.ratio.value, each.config.digest))
    return Shared(other.name, tuple(shared), in_one_alone)


def _trials(records: Sequence[TrialRecord]) -> Mapping[ServingConfig, TrialRecord]:
    """Return the last complete trial of each configuration that the study measured itself.

    Trials carried over are measurements of another study, and pruned ones have no capacity.
    """
    measured = (r for r in records if r.origin is None and r.outcome in ("ok", "infeasible"))
    return {record.config: record for record in measured}


def _capacity(record: TrialRecord) -> Estimate | None:
    if record.outcome != "ok" or record.measurement is None:
        return None
    return estimate_of_trial(record.measurement)


def _machine_differences(machines: Sequence[Machine]) -> Iterator[SpaceDifference]:
    rows = [_described(machine) for machine in machines]
    for what in dict.fromkeys(key for row in rows for key in row):
        values = tuple(row.get(what, "-") for row in rows)
        if len(set(values)) > 1:
            yield SpaceDifference(what, values)


def _described(machine: Machine) -> dict[str, str]:
    return {
        "CPU": machine.cpu,
        "cores": str(machine.cores),
        "memory, GiB": str(machine.memory_gib),
        "vector extensions": ", ".join(machine.cpu_features) or "none",
        "GPUs": counted_gpus(machine.gpus) or "none",
        "NVIDIA driver": machine.driver or "none",
        "server": machine.server,
        "system": machine.system,
        "Python": machine.python,
        **dict(machine.packages),
    }


def _space_differences(contents: Sequence[Mapping[str, Any]]) -> Iterator[SpaceDifference]:
    """Of the space files, less price and demand, which are shown by themselves."""
    first, *others = contents
    paths = {path for other in others for path, _, _ in unequal(first, other)}
    for path in sorted(paths):
        shown = path[0] == "price" or path[-1] in ("demand_per_second", "headroom")
        if not shown:
            yield SpaceDifference(
                ".".join(path), tuple(_text(_at(each, path)) for each in contents)
            )


def _at(content: Any, path: Sequence[str]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
