"""The events of a run. Watchers receive them; the run does not depend on any watcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.search_status import ExpectedCost, SearchStatus

Phase = Literal[
    "prepare", "calibrate", "search", "confirm", "winner", "record", "baseline", "advanced"
]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase starts.

    Attributes:
        steps: largest number of steps it can take.
        seconds: its time limit; None where it has none.
    """

    phase: Phase
    steps: int
    seconds: float | None = None


@dataclass(frozen=True)
class StepStarted:
    """A step starts that takes a while, such as "building bert/openvino/int8"."""

    doing: str


@dataclass(frozen=True)
class StepFinished:
    """A step of a phase that has no trials is over, whether or not it led to a result."""


@dataclass(frozen=True)
class ArtifactReady:
    """An artefact passed the accuracy gate, or was dropped from the space."""

    label: str
    detail: str
    dropped: bool


@dataclass(frozen=True)
class EarlierTrials:
    """A search goes on from these trials, in the order in which they were told.

    Attributes:
        best: the recommendation by them.
    """

    records: Sequence[TrialRecord]
    best: ConfirmedCapacity | None


@dataclass(frozen=True)
class TrialStarted:
    """A configuration is about to be measured.

    Attributes:
        measured: number of this trial within the budget `of`, from 1.
        expected: by the sampler; None where it has no model of the cost.
        worker: that measures it, where there are several; else empty.
    """

    number: int
    measured: int
    of: int
    config: ServingConfig
    expected: ExpectedCost | None = None
    worker: str = ""


@dataclass(frozen=True)
class SearchStatusChanged:
    """The sampler's estimate of what is left to find has been updated."""

    status: SearchStatus


@dataclass(frozen=True)
class DriftRunStarted:
    """The baseline is about to be measured again, to detect drift of the machine."""

    config: ServingConfig


@dataclass(frozen=True)
class DisturbanceCheckStarted:
    """The baseline is about to be measured on one worker alone, and then on all of them at once."""

    config: ServingConfig
    workers: int


@dataclass(frozen=True)
class LevelStarted:
    """A load level starts; the offered rate is None at saturation."""

    offered_per_second: float | None
    seconds: float


@dataclass(frozen=True)
class LevelFinished:
    """A load level was measured."""

    level: LoadLevel


@dataclass(frozen=True)
class TrialRecorded:
    """A record was written and is about to be told to Optuna."""

    record: TrialRecord


@dataclass(frozen=True)
class TrialFinished:
    """A record was written and told; `best` is the recommendation by all records."""

    record: TrialRecord
    best: ConfirmedCapacity | None


@dataclass(frozen=True)
class WorkersStarted:
    """Workers are ready, each for one trial at a time; others may be there already.

    Attributes:
        locations: slot or node of each worker, by its name.
    """

    locations: Mapping[str, str]


@dataclass(frozen=True)
class WorkerEvent:
    """An event of one of several workers.

    Attributes:
        worker: name.
        number: of the trial that it runs, see `Task.number`.
    """

    worker: str
    number: int
    event: Event


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone, and with it the trial that it was running.

    Attributes:
        number: of that trial; None where the worker was idle.
    """

    worker: str
    number: int | None
    reason: str


@dataclass(frozen=True)
class WorkerLogsRead:
    """The ends of the logs of a worker on another host, whose trial failed or which was lost.

    Attributes:
        logs: by name of the file, "server.log" and "worker.log".
    """

    worker: str
    logs: Mapping[str, bytes]


@dataclass(frozen=True)
class Note:
    """Information for people.

    Attributes:
        warning: whether it is shown even in quiet mode.
        trouble: whether somebody who does not watch the run is notified (--notify).
    """

    text: str
    warning: bool = False
    trouble: bool = False


Event = (
    PhaseStarted
    | StepStarted
    | StepFinished
    | ArtifactReady
    | EarlierTrials
    | TrialStarted
    | DriftRunStarted
    | DisturbanceCheckStarted
    | LevelStarted
    | LevelFinished
    | SearchStatusChanged
    | TrialRecorded
    | TrialFinished
    | WorkersStarted
    | WorkerEvent
    | WorkerLost
    | WorkerLogsRead
    | Note
)
Watcher = Callable[[Event], None]


def warnings_to(watch: Watcher) -> Callable[[str], None]:
    """Return what passes texts to a watcher, as warnings."""
    return lambda text: watch(Note(text, warning=True))


def to_all(*watchers: Watcher) -> Watcher:
    """Return a watcher that passes events to each of several, in this order."""

    def tell(event: Event) -> None:
        for watch in watchers:
            watch(event)

    return tell
