"""How the best configuration starts, with model_warmup and without: tables and a conclusion."""

from __future__ import annotations

from optimizer.measurement.cold_start import ColdStart, FirstRequest, Start
from optimizer.measurement.level_checks import why_void
from optimizer.report import number_formats as form
from optimizer.report.table import Table

_NAMES = {True: "with model_warmup", False: "without model_warmup"}


def cold_start_sentence(cold: ColdStart) -> str:
    """Return when an instance serves after its start, and what its first request takes."""
    own, other = cold.as_served, cold.otherwise
    first = own.first_requests[0]
    how = "With" if own.warmup else "Without"
    lacking = "" if own.warmup else ", which the configuration does not have"
    text = (
        f"{how} model_warmup{lacking}, {_ready(own)}, and the first request takes "
        f"{form.milliseconds(first.first_ms)} ms"
    )
    if other is not None:
        first_ms = form.milliseconds(other.first_requests[0].first_ms)
        text += (
            f"; {'with' if other.warmup else 'without'} it, these are "
            f"{form.seconds(other.ready_seconds)} and {first_ms} ms"
        )
    return f"{text}. Later requests take {form.milliseconds(first.later_ms)} ms."


def _ready(start: Start) -> str:
    if start.server_seconds is None:
        return f"the models serve {form.seconds(start.load_seconds)} after the request to load them"
    return (
        f"an instance serves {form.seconds(start.ready_seconds)} after its server is started "
        f"({form.seconds(start.load_seconds)} of it to load the models)"
    )


def cold_start_tables(cold: ColdStart, later_p99_ms: float | None) -> tuple[Table, ...]:
    """Return the times until an instance serves and the first load, and the first requests.

    Args:
        later_p99_ms: at the same load once the server is warm; None where that is unknown.
    """
    return _starts(cold, later_p99_ms), _first_requests(cold)


def _starts(cold: ColdStart, later_p99_ms: float | None) -> Table:
    rows = [
        (
            _NAMES[start.warmup],
            form.MISSING if start.server_seconds is None else f"{start.server_seconds:.2f}",
            f"{start.load_seconds:.2f}",
            f"{start.ready_seconds:.2f}",
            *(form.milliseconds(start.level.latency_ms(p)) for p in (50, 95, 99)),
        )
        for start in cold.starts
    ]
    level = cold.as_served.level
    later = f" Once warm, p99 is {form.milliseconds(later_p99_ms)} ms." if later_p99_ms else ""
    void = [
        f"{_NAMES[start.warmup]}: {reason}."
        for start in cold.starts
        if (reason := why_void(start.level)) is not None
    ]
    return Table(
        "Until an instance serves, and its first load",
        ("start", "server, s", "models, s", "ready, s", "p50, ms", "p95, ms", "p99, ms"),
        tuple(rows),
        (
            f"Latencies are those of the first {form.seconds(level.seconds)} of load, at the "
            f"certified {form.rate(level.offered_per_second)} requests/s, from the first request "
            f"on.{later} Loading is the median of {cold.as_served.loads} loads.",
            *void,
        ),
    )


def _first_requests(cold: ColdStart) -> Table:
    own = cold.as_served
    several = len({first.model for first in own.first_requests}) > 1
    names = tuple(_NAMES[start.warmup] for start in cold.starts)
    rows = [
        (
            *([first.model] if several else []),
            str(first.batch_size),
            *(_first(start.first_request(first.model, first.batch_size)) for start in cold.starts),
            form.milliseconds(first.later_ms),
        )
        for first in own.first_requests
    ]
    notes = ["Each first request was sent after a load of its own."]
    if cold.left_out:
        sizes = ", ".join(map(str, cold.left_out))
        notes.append(f"No time was left for requests of {sizes}.")
    return Table(
        "Latency of the first request by its inferences, ms",
        (*(["model"] if several else []), "inferences", *names, "later requests"),
        tuple(rows),
        tuple(notes),
    )


def _first(request: FirstRequest | None) -> str:
    return form.MISSING if request is None else form.milliseconds(request.first_ms)
