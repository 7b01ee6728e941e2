"""What a run tells whoever watches. The run never waits for, or learns from, a watcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.search_status import ExpectedCost, SearchStatus

Phase = Literal["prepare", "calibrate", "search", "confirm", "record", "baseline", "advanced"]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins; `steps` is how many things it has to do, at most.

    Attributes:
        seconds: that it may take; None where nothing bounds it.
    """

    phase: Phase
    steps: int
    seconds: float | None = None


@dataclass(frozen=True)
class StepStarted:
    """Something begins that takes a while, such as "build bert/openvino/int8"."""

    doing: str


@dataclass(frozen=True)
class ArtifactReady:
    """An artefact passed the accuracy gate, or left the space for `dropped`."""

    label: str
    detail: str
    dropped: bool


@dataclass(frozen=True)
class TrialStarted:
    """A configuration is about to be measured; `of` is the budget.

    Attributes:
        expected: what the sampler expects of it; None where it has no expectations.
    """

    number: int
    measured: int
    of: int
    config: ServingConfig
    expected: ExpectedCost | None = None


@dataclass(frozen=True)
class SearchStatusChanged:
    """What the search may still find, after what was measured last."""

    status: SearchStatus


@dataclass(frozen=True)
class DriftRunStarted:
    """The baseline is about to be saturated again, to see whether the machine keeps its pace."""

    config: ServingConfig


@dataclass(frozen=True)
class LevelStarted:
    """A load level begins; the offered rate is None at saturation."""

    offered_per_second: float | None
    seconds: float


@dataclass(frozen=True)
class LevelFinished:
    """A load level was measured."""

    level: LoadLevel


@dataclass(frozen=True)
class TrialRecorded:
    """A record was written and is about to be told."""

    record: TrialRecord


@dataclass(frozen=True)
class TrialFinished:
    """A record was written and told; `best` is what all records recommend by now."""

    record: TrialRecord
    best: ConfirmedCapacity | None


@dataclass(frozen=True)
class Note:
    """Something that a person should know and that changes nothing.

    Attributes:
        warning: whether it is to be said even to who wants to hear little.
    """

    text: str
    warning: bool = False


Event = (
    PhaseStarted
    | StepStarted
    | ArtifactReady
    | TrialStarted
    | DriftRunStarted
    | LevelStarted
    | LevelFinished
    | SearchStatusChanged
    | TrialRecorded
    | TrialFinished
    | Note
)
Watcher = Callable[[Event], None]


def to_all(*watchers: Watcher) -> Watcher:
    """A watcher that tells each of several, in this order."""

    def tell(event: Event) -> None:
        for watch in watchers:
            watch(event)

    return tell
