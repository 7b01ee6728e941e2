"""Why a study has no confirmed configuration within its limits, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from optimizer.analysis.summary import NothingConfirmed
from optimizer.configuration.serving_config import describe
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import ConfirmedCapacity, contradicted_by


def nothing_confirmed(
    trials: Sequence[TrialRecord],
    confirmations: Collection[TrialRecord],
    unconfirmed: ConfirmedCapacity | None = None,
) -> NothingConfirmed:
    """Explain by its records why a study confirmed nothing.

    Args:
        unconfirmed: the best by its trial alone, where no measurement contradicts it.
    """
    if unconfirmed is not None:
        return _not_measured_again(unconfirmed, confirmations)
    if not trials:
        return NothingConfirmed(
            "nothing was measured yet",
            "preparation and calibration used all the time: raise --timeout (budget.wall_clock in "
            "the space file), then rerun the command to resume",
        )
    contradicted = contradicted_by(confirmations)
    if contradicted:
        [last] = [*contradicted.values()][-1:]
        return NothingConfirmed(
            f"{len(contradicted)} of {len(trials)} trials met the limits, but not when they were "
            f"measured again; the last was {describe(last.config)}: {last.reason}",
            "keep other work off this machine, raise limit.latency_ms, or widen parameters",
        )
    missed = [r for r in trials if r.outcome == "infeasible" and r.constraints]
    if missed:
        nearest = min(missed, key=lambda r: max(value for _, value in r.constraints))
        return NothingConfirmed(
            f"none of {len(trials)} trials met the limits; the nearest was "
            f"{describe(nearest.config)}: {nearest.reason}",
            "raise limit.latency_ms, or widen parameters",
        )
    return NothingConfirmed(
        f"none of {len(trials)} trials could be measured: {trials[-1].reason}",
        "remove the cause (see logs/server.log in the study's folder), then resume with a larger "
        "--trials",
    )


def _not_measured_again(
    unconfirmed: ConfirmedCapacity, confirmations: Collection[TrialRecord]
) -> NothingConfirmed:
    trial = f"{describe(unconfirmed.config)} ({unconfirmed.figures})"
    start = f"nothing was confirmed; the best by its trial alone, {trial}"
    failed = [r.reason for r in confirmations if r.config == unconfirmed.config and r.failure]
    if not failed:
        return NothingConfirmed(
            f"{start}, was not measured again before the run ended",
            "rerun the command to confirm it; a longer --timeout leaves more time for that",
        )
    return NothingConfirmed(
        f"{start}, could not be measured again: {failed[-1]}",
        "remove the cause, then rerun the command to try again",
    )
