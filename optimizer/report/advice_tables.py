"""What production's counters show of a model, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import describe_model
from optimizer.export.monitoring.observed_drift import DriftFigure
from optimizer.measurement.counters import CounterInterval, by_replica, joined_split
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.production.advice import PERCENTILE, Advice, Interval, PredictedChange
from optimizer.production.self_check import CheckedFigure, SelfCheck, utilisation
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table, table_of

_LEAST_SHARE = 0.01
"""Of the inferences: batch sizes that have less share no row."""

_NOT_IN_COUNTERS = (
    "No counter tells what another precision or runtime, a larger max_batch_size, or another "
    "instance type would save: `python -m optimizer run` measures these."
)


def advice_parts(
    advice: Advice,
    intervals: Sequence[CounterInterval],
    quantiles_ms: Mapping[str, Sequence[tuple[float, float]]],
    notes: Sequence[str],
    *,
    limit_given: bool,
) -> Iterator[Part]:
    """Yield what was observed, the self-check, and the advice.

    Args:
        quantiles_ms: (percentile, time in the server) of each replica, as its metrics have them.
        notes: what was left out of the observation, in sentences.
    """
    yield Line(describe_model(advice.learnt.serving))
    yield _replicas(advice, intervals, quantiles_ms)
    for note in notes:
        yield Line(f"Note: {note}.", "warning")
    yield from _demand(advice)
    yield _service(advice)
    yield from _self_check(advice.learnt.check)
    yield _changes(advice)
    if not limit_given:
        yield Line(
            "Without --limit, the limit is the p95 of now: what is as fast as today, for less.",
            "note",
        )
    yield from _conclusion(advice)


@dataclass(frozen=True)
class _Replica:
    """All intervals of a replica together."""

    name: str
    seconds: float
    failures: int
    split: ServerSplit


def _replica(intervals: Sequence[CounterInterval]) -> _Replica:
    return _Replica(
        intervals[0].replica,
        sum(each.seconds for each in intervals),
        sum(each.failures for each in intervals),
        joined_split(intervals),
    )


def _replicas(
    advice: Advice,
    intervals: Sequence[CounterInterval],
    quantiles_ms: Mapping[str, Sequence[tuple[float, float]]],
) -> Table:
    serving = advice.learnt.serving
    columns: Mapping[str, Callable[[_Replica], str]] = {
        "replica": lambda own: own.name,
        "requests/s": lambda own: form.rate(own.split.requests / own.seconds),
        "failed": lambda own: form.count(own.failures),
        "utilisation": lambda own: form.percent(utilisation(own.split, own.seconds, serving)),
        "mean batch": lambda own: form.ratio(own.split.inferences / max(own.split.executions, 1)),
        "queue": lambda own: form.milliseconds(own.split.queue_ms),
        "compute": lambda own: form.milliseconds(own.split.compute_ms),
        "p95": lambda own: form.milliseconds(dict(quantiles_ms[own.name]).get(PERCENTILE)),
    }
    notes = (
        "utilisation: of the instances; queue, compute: means in the server; p95: of the server's "
        "summaries, where it has them.",
    )
    title = f"Observed for {form.clock(advice.learnt.demand.seconds)}, ms"
    return table_of(title, columns, map(_replica, by_replica(intervals)), notes=notes)


def _demand(advice: Advice) -> Iterator[Line]:
    own = advice.learnt.demand
    spread = form.interval(own.mean_low, own.mean_high, form.rate)
    yield Line(
        f"Demand: {form.rate(own.mean_per_second)} requests/s ({spread}), at the peak "
        f"{form.rate(own.peak_per_second)} over {form.clock(own.peak_seconds)}; arrivals are "
        f"{own.arrivals_text}"
        + (f", dispersion {own.dispersion:.2f}." if own.dispersion is not None else ".")
    )
    if abs(own.request_size - round(own.request_size)) > 0.01:
        yield Line(
            f"Requests have {own.request_size:.2f} inferences on average, of several sizes: they "
            f"are simulated with {max(1, round(own.request_size))} each.",
            "warning",
        )


def _service(advice: Advice) -> Table:
    service = advice.learnt.service
    curve = service.curve(advice.learnt.serving)
    largest = advice.learnt.serving.max_batch_size
    table = curve.table_ms(max(largest, *(each.batch_size for each in service.split.batches)))
    total = service.split.inferences
    columns: Mapping[str, Callable[[BatchPoint], str]] = {
        "batch size": lambda own: form.count(own.batch_size),
        "executions": lambda own: form.count(own.executions),
        "inferences": lambda own: form.percent(own.inferences / total),
        "compute": lambda own: form.milliseconds(own.compute_ms),
        "occupies an instance": lambda own: form.milliseconds(float(table[own.batch_size])),
    }
    shown = [each for each in service.split.batches if each.inferences >= _LEAST_SHARE * total]
    varied = f"Single executions vary by {form.percent(service.spread)}."
    if service.largest_batch < largest:
        varied += f" Batches above {service.largest_batch} were hardly or never executed."
    return table_of("Executed batches, ms", columns, shown, notes=(varied,))


def _self_check(check: SelfCheck) -> Iterator[Part]:
    def text(own: CheckedFigure, value: float) -> str:
        return f"{value:.3g} {own.unit}" if own.unit else form.percent(value)

    columns: Mapping[str, Callable[[CheckedFigure], str]] = {
        "figure": lambda own: own.name,
        "observed": lambda own: text(own, own.observed),
        "simulated": lambda own: text(own, own.simulated),
        "may differ by": lambda own: text(own, own.tolerance),
        "agrees": lambda own: "yes" if own.agrees else "no",
    }
    yield table_of("Self-check: the observed load, simulated", columns, check.figures)
    if check.trusted:
        yield Line("The simulation reproduces what was observed.", "good")
        return
    yield Line("The advice below is not to be trusted:", "warning")
    for reason in check.reasons:
        yield Line(f"- {reason}.", "warning")


def _interval(own: Interval, text: Callable[[float], str]) -> str:
    return f"{text(own.value)} ({form.interval(own.low, own.high, text)})"


def _changes(advice: Advice) -> Table:
    def name(own: PredictedChange) -> str:
        if own is advice.current:
            return "as it is now"
        return own.name if own.changed else "number of replicas alone"

    def count(value: int | None) -> str:
        return form.MISSING if value is None else form.count(value)

    columns: Mapping[str, Callable[[PredictedChange], str]] = {
        "change": name,
        "capacity/s": lambda own: _interval(own.capacity_per_second, form.rate),
        "replicas": lambda own: count(own.replicas),
        "at mean": lambda own: count(own.replicas_at_mean),
        "p95 ms": lambda own: (
            form.MISSING if own.p95_ms is None else _interval(own.p95_ms, form.milliseconds)
        ),
        "$/hour": lambda own: (
            form.MISSING if own.usd_per_hour is None else form.usd(own.usd_per_hour)
        ),
        "load-test first": lambda own: "yes" if own.test_first else "no",
    }
    rows = dict.fromkeys((advice.current, advice.needed, *advice.alone, advice.best))
    limit_ms = advice.learnt.stream.limit.latency_ms
    title = f"Predictions within {limit_ms:.4g} ms (p{PERCENTILE:g})"
    notes = (
        "capacity/s: requests/s of one replica within the limit, with an interval of 95 %; "
        "replicas: those of now, or as many as suffice for the peak; at mean: as many as suffice "
        "for the mean demand, both by the lower bound of the capacity; p95, $/hour: at the peak, "
        "with these replicas.",
    )
    return table_of(title, columns, rows, notes=notes, texts=("change",))


def _conclusion(advice: Advice) -> Iterator[Line]:
    now, needed, best = advice.learnt.replicas, advice.needed, advice.best
    yield Line(_fleet(advice, needed), "good" if (needed.replicas or now) < now else "plain")
    yield from _tests(needed)
    if best.changed:
        yield Line(f"Best change: {best.name}. {_fleet(advice, best)}", "good")
        if best.replicas is not None and best.replicas == needed.replicas:
            yield Line("It saves no further replica at this demand, but leaves more room.")
        yield from _tests(best)
    else:
        yield Line("No change of these settings serves clearly more.")
    if advice.price is not None:
        yield Line(f"Price: {form.price_text(advice.price)}.")
    yield Line(_NOT_IN_COUNTERS, "note")


def _tests(change: PredictedChange) -> Iterator[Line]:
    for reason in change.test_first:
        yield Line(f"Load-test first: {reason}.", "warning")


def _fleet(advice: Advice, change: PredictedChange) -> str:
    """Return how many replicas a change needs, and what they save."""
    now = advice.learnt.replicas
    subject = "With it" if change.changed else "As it is"
    if change.replicas is None:
        return f"{subject}, no number of replicas is within the limit."
    one = change.replicas == 1
    needed = "1 replica suffices" if one else f"{change.replicas} replicas suffice"
    text = f"{subject}, {needed} for the peak; there {'is' if now == 1 else 'are'} {now} now."
    paid, cost = advice.current.usd_per_hour, change.usd_per_hour
    if paid is None or cost is None or change.replicas >= now:
        return text
    return f"{text} That saves {form.usd(paid - cost)} an hour."


def drift_parts(compared: Sequence[DriftFigure]) -> Iterator[Part]:
    """Yield what production does beside what was measured before the deployment."""
    columns: Mapping[str, Callable[[DriftFigure], str]] = {
        "figure": lambda own: own.name,
        "measured": lambda own: own.measured,
        "observed": lambda own: own.observed,
        "drift": lambda own: "yes" if own.drifts else "no",
        "alert": lambda own: own.alert or form.MISSING,
    }
    texts = ("measured", "observed", "alert")
    yield table_of("Beside the bundle's measurements", columns, compared, texts=texts)
    drifting = [each.name for each in compared if each.drifts]
    if drifting:
        yield Line(f"Drift: {', '.join(drifting)}.", "warning")
    else:
        yield Line("Production is as it was measured.", "good")
