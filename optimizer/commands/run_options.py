"""The options of `run`, and which of them exclude each other."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from optimizer.cluster.choice import ClusterChoice
from optimizer.commands.protocols import require_one_limit
from optimizer.commands.run_time import chosen_seconds
from optimizer.errors import UsageError
from optimizer.search.samplers import CALIBRATED, SAMPLERS
from optimizer.search.winner_phase import WinnerTest
from optimizer.space_file.reader import Budget, Space

_WITHOUT_SIMULATOR = "tpe"
"""The default sampler where that with a simulator cannot be used."""


@dataclass(frozen=True)
class RunOptions:
    """Options of `run`, see `optimizer.api.run`; None leaves the space file's own value."""

    space: Path | Space
    study: str | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    until: datetime.time | None = None
    regret_percent: float | None = None
    seed: int = 0
    sampler: str | None = None
    storage: str | None = field(default=None, repr=False)  # may have a password
    warm_start: str | None = None
    prior: str | None = None
    enqueue: Literal["published"] | None = None
    also_limits_ms: tuple[float, ...] = ()
    winner_tests: tuple[WinnerTest, ...] = ()
    gpus: str | None = None
    slots: int | None = None
    max_disturbance_percent: float | None = None
    notify: str | None = field(default=None, repr=False)  # may have a password
    cluster: ClusterChoice | None = None
    wait_for_quiet_seconds: float | None = None
    results: Path = Path("results")
    cache: Path | str | None = None

    @property
    def chosen_sampler(self) -> str:
        """The sampler, the default one where none was given."""
        return self.sampler or (_WITHOUT_SIMULATOR if self.also_limits_ms else "guided")

    @property
    def extra_limits_ms(self) -> tuple[float, ...]:
        """The latency limits beside the space file's, ascending."""
        return tuple(sorted(set(self.also_limits_ms)))


def with_options(space: Space, options: RunOptions, started: float) -> Space:
    """Return the space with the study's name and the budget that the options have.

    Args:
        started: when the run began, as `time.monotonic`.
    """
    seconds = chosen_seconds(options.timeout_seconds, options.until, started)
    budget = Budget(
        options.trials or space.budget.trials,
        seconds or space.budget.wall_clock_seconds,
        options.regret_percent or space.budget.regret_percent,
    )
    return replace(space, study=options.study or space.study, budget=budget)


def require_consistent(options: RunOptions, space: Space) -> None:
    """Check that the options go together, and with the space. Raises UsageError otherwise."""
    if options.also_limits_ms:
        _refuse_with_extra_limits(options, space)
    _refuse_regret_without_model(options)


def _refuse_regret_without_model(options: RunOptions) -> None:
    """Refuse --regret with a sampler that cannot tell what an unmeasured configuration saves."""
    if options.regret_percent is not None and options.chosen_sampler not in CALIBRATED:
        raise UsageError(
            f"--regret: needs --sampler {', '.join(sorted(CALIBRATED))}, which bounds the saving "
            f"of other configurations; got --sampler {options.chosen_sampler}"
        )


def _refuse_with_extra_limits(options: RunOptions, space: Space) -> None:
    """Refuse options that do not go with several latency limits."""
    require_one_limit(space.workload, "--also-limit")
    limit_ms = space.workload.shortest_limit_ms
    if limit_ms in options.also_limits_ms:
        raise UsageError(
            f"--also-limit: must be another limit than the space file's; got {limit_ms:g} ms"
        )
    if options.chosen_sampler in CALIBRATED:
        others = ", ".join(name for name in SAMPLERS if name not in CALIBRATED)
        raise UsageError(
            f"--sampler: must be one of {others} with --also-limit; got {options.sampler}, which "
            "minimises the cost within one limit"
        )
    if options.warm_start is not None:
        raise UsageError(
            "--warm-start: must be left out with --also-limit: the other study's trials have no "
            f"cost within further limits; got {options.warm_start}"
        )
