"""The record of one trial. Pure; `optimizer.study.record_store` reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Score
from optimizer.measurement.level import ExtraLimit, Measurement

SCHEMA_VERSION = 4

ONLY_WORKER = "local"
"""Name of the worker of a run that measures one configuration at a time."""

Outcome = Literal["ok", "infeasible", "bounded", "failed"]
"""ok: limits met at some load. infeasible: missed even at the floor load, or accuracy missed.
bounded: stopped once provably worse than the incumbent. failed: could not be measured."""


def outcome_name(outcome: Outcome) -> str:
    """Return an outcome as people read it; records say "bounded" for a pruned trial."""
    return "pruned" if outcome == "bounded" else outcome


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of a trial, in seconds.

    Attributes:
        building: making artefacts that were not cached.
        measuring: load tests, their warm-up included.
        serving: starting the server, loading the model and reading its configuration back.
        total: from proposal to record.
    """

    building: float = 0.0
    measuring: float = 0.0
    serving: float = 0.0
    total: float = 0.0

    @property
    def overhead(self) -> float:
        """Time outside building and load tests."""
        return self.total - self.building - self.measuring


@dataclass(frozen=True, slots=True)
class Failure:
    """Kind of a failure, whether a retry may succeed, and whether memory ran out."""

    kind: str
    transient: bool
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Optuna's trial number in this study.
        params: the proposal, as told to Optuna.
        told_value: objective told to Optuna; None for `failed`. Only for `ok` is it a cost.
        constraints: (name, value) pairs in the study's fixed order; <= 0 is feasible.
        reason: why it is not `ok`, or why the capacity search ended.
        machine: digest of the machine's fingerprint.
        origin: the study in which it was measured, if another one.
        attempt: 2 for the retry of a transient failure, which is a trial of its own.
        further: capacities within extra limits; empty in a study of one limit.
        told_further: objectives told to Optuna for these limits.
        workers: that it ran on; all but the last were lost, and so was the last where the trial
            failed for that.
        told_at_proposal: number of the study's records that had been told when it was proposed;
            None for a record that was carried over, or written before trials ran at the same time.
        told_position: number of the study's records that were told before its own; None as above.
        calibrated_by: number of calibration runs that had ended when the sampler proposed it; None
            as above, and where it did not wait for them, as the baseline does not.
        rounds: of the confirm phase that must do for its configuration, because there was no time
            for more; None where all are needed.
    """

    number: int
    params: tuple[tuple[str, int | float | str], ...]
    config: ServingConfig
    outcome: Outcome
    reason: str
    machine: str
    measurement: Measurement | None = None
    score: Score | None = None
    told_value: float | None = None
    constraints: tuple[tuple[str, float], ...] = ()
    failure: Failure | None = None
    seconds: Seconds = field(default_factory=Seconds)
    attempt: int = 1
    origin: str | None = None
    further: tuple[ExtraLimit, ...] = ()
    told_further: tuple[float, ...] = ()
    workers: tuple[str, ...] = ()
    told_at_proposal: int | None = None
    told_position: int | None = None
    calibrated_by: int | None = None
    rounds: int | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def worker(self) -> str:
        """The worker that measured it, where there were several; else empty."""
        return self.workers[-1] if self.workers and self.workers[-1] != ONLY_WORKER else ""

    @property
    def unmeasured(self) -> bool:
        """Whether it failed for a transient reason, which tells nothing of its configuration."""
        return self.failure is not None and self.failure.transient
