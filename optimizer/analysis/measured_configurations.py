"""The load levels that a study measured of each configuration, for limits other than its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from optimizer.analysis.latency_curve import MeasuredConfigurationLevels
from optimizer.analysis.run_summary import LoadRuns
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import merged, rounds_needed
from optimizer.study.trial_records import has_wrong_answers


def measured_configurations(
    trials: Iterable[TrialRecord], runs: LoadRuns
) -> list[MeasuredConfigurationLevels]:
    """Return every configuration whose capacity was searched for, in the order of the trials.

    Confirmed figures replace those of the trial; what the confirm phase contradicted is left out.
    """
    latest = {r.config: r for r in trials if r.outcome in ("ok", "infeasible") and _whole(r)}
    held = _by_config(runs.confirmations)
    light = _by_config(runs.calibration)
    return [
        _with_levels(record, held.get(config, []), light.get(config, []))
        for config, record in latest.items()
        if all(again.outcome == "ok" for again in held.get(config, []))
    ]


def _whole(record: TrialRecord) -> bool:
    levels = record.measurement.levels if record.measurement is not None else ()
    searched = [level.kind for level in levels[:2]] == ["saturation", "open_loop"]
    return searched and not has_wrong_answers(record)


def _by_config(records: Iterable[TrialRecord]) -> Mapping[ServingConfig, list[TrialRecord]]:
    """Group records by configuration, without transient failures."""
    grouped: dict[ServingConfig, list[TrialRecord]] = {}
    for record in records:
        if not record.unmeasured:
            grouped.setdefault(record.config, []).append(record)
    return grouped


def _with_levels(
    record: TrialRecord, held: list[TrialRecord], light: list[TrialRecord]
) -> MeasuredConfigurationLevels:
    assert record.measurement is not None, "what was searched for was measured"
    own = record.measurement
    limit_ms = own.levels[0].shortest_limit_ms
    rounds = [again.measurement for again in held if again.measurement is not None]
    more = [again.measurement for again in light if again.measurement is not None]
    further = {each.limit_ms: each.measurement for each in record.further}
    certified = {limit_ms: own}
    if len(rounds) >= rounds_needed(held):
        held_ms, confirmed = _met_ms(rounds), merged(rounds)
        further = {ms: _agreeing(x, confirmed, ms < limit_ms) for ms, x in further.items()}
        certified = {min(limit_ms, held_ms): confirmed, limit_ms: confirmed}
    return MeasuredConfigurationLevels(
        record.config,
        own.levels[0].load_factor,
        tuple(x for each in (own, *further.values(), *rounds, *more) for x in each.levels),
        tuple(sorted((certified | further).items(), key=lambda pair: pair[0])),
        (limit_ms, *further),
    )


def _met_ms(rounds: Iterable[Measurement]) -> float:
    """Return the shortest limit within which every round would have certified its load."""
    return max(
        level.shortest_limit_ms * (1 + level.limit_overshoot)
        for held in rounds
        for level in held.open_loop
        if level.load_factor <= held.load_factor
    )


def _agreeing(grouped: Measurement, confirmed: Measurement, shorter: bool) -> Measurement:
    """Return the capacity within another limit, corrected by the confirmed one.

    Within a shorter limit it is at most the confirmed capacity, within a longer one at least.
    """
    if shorter == (grouped.load_factor <= confirmed.load_factor):
        return grouped
    low = min if shorter else max
    return replace(
        grouped,
        load_factor=confirmed.load_factor,
        load_factor_low=low(grouped.load_factor_low, confirmed.load_factor_low),
        load_factor_high=confirmed.load_factor_high,
    )
