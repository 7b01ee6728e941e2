"""One measured configuration on the terminal: its load levels, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from optimizer.cli.terminal import print_line, print_parts, print_path, print_sentence, print_table
from optimizer.commands.measure import MeasureResult
from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.serving_config import describe
from optimizer.load.perf_analyzer import PerfAnalyzerResult
from optimizer.load.user_load import UserLoad
from optimizer.measurement.cache_use import CacheUse, cache_uses
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.host_share import HostTiming, model_ms
from optimizer.measurement.level import BatchPoint, LoadLevel, Measurement, ServerSplit, StreamLevel
from optimizer.measurement.level_checks import (
    capacity_basis,
    rejected_requests,
    why_missed,
    why_void,
)
from optimizer.measurement.resource_use import GpuUse, MachineUse
from optimizer.report import number_formats as form
from optimizer.report.pipeline_tables import breakdown_parts, breakdowns
from optimizer.report.table import Table, table_of

_LEAST_SHARE = 0.01
"""Share of the inferences below which batch sizes are shown together."""


def show_measured(console: Console, measured: MeasureResult) -> None:
    """Print the load levels, the capacity and where the time goes."""
    result = measured.load_test
    print_sentence(console, describe(measured.config), "bold")
    load = (
        _user_load(result.users, result.shown)
        if result.users is not None
        else _levels(result.levels)
    )
    print_table(console, load)
    if result.measurement is not None:
        style = "green" if result.measurement.load_factor else "yellow"
        print_sentence(console, _capacity(result.measurement), style)
    if result.missed is not None and (result.measurement is None or result.measurement.load_factor):
        print_sentence(console, f"The limit was not met: {result.missed}.", "yellow")
    print_table(console, _time(measured, result.shown))
    own = breakdowns(measured.config, result.shown, result.levels)
    print_parts(console, breakdown_parts(own))
    for split in result.shown.executed:
        print_table(console, _batches(split))
    for use in cache_uses(result.levels):
        print_sentence(console, _cache(use))
    for line in _machine(result.shown):
        print_sentence(console, line)
    if result.compared is not None and result.opinion is not None:
        print_table(console, _opinions(result.compared, result.opinion))
        print_line(console, f"perf_analyzer ran as: {' '.join(result.opinion.command)}")
    for warning in dict.fromkeys(text for level in result.levels for text in level.warnings):
        print_sentence(console, f"Warning: {warning}", "yellow")
    print_path(console, "all figures", measured.file)


def _capacity(measurement: Measurement) -> str:
    low, high = measurement.capacity_low_per_second, measurement.capacity_high_per_second
    basis = capacity_basis(measurement)
    return (
        f"Capacity: {form.rate(measurement.capacity_per_second)} requests/s (95% interval "
        f"{form.interval(low, high, form.rate)}{f'; {basis}' if basis else ''}): "
        f"{measurement.ended}."
    )


def _levels(levels: Sequence[LoadLevel]) -> Table:
    columns: Mapping[str, Callable[[tuple[LoadLevel, StreamLevel]], str]] = {
        "offered/s": lambda row: (
            "saturation" if row[0].kind == "saturation" else form.rate(row[1].offered_per_second)
        ),
        "completed/s": lambda row: form.rate(row[1].achieved_per_second),
        "p50": lambda row: form.milliseconds(row[1].latency_ms(50)),
        "p95 (95% interval)": lambda row: _interval(row[1].latency(95)),
        "p99": lambda row: form.milliseconds(row[1].latency_ms(99)),
        "client lag p99": lambda row: form.milliseconds(row[0].client.lag_ms),
        "result": lambda row: _result(row[0]),
    }
    rows = [(level, stream) for level in sorted(levels, key=_offered) for stream in level.streams]
    title = "Load levels: latency in ms, from when a request was due"
    return table_of(title, columns, rows, texts=("result",))


def _result(level: LoadLevel) -> str:
    missed = why_void(level) or why_missed(level) if level.kind != "saturation" else None
    rejected = rejected_requests(level)
    return (missed or level.ended) + (f"; {rejected}" if rejected is not None else "")


def _offered(level: LoadLevel) -> tuple[bool, float]:
    return level.kind != "saturation", level.load_factor


def _interval(latency: Percentile) -> str:
    ends = form.interval(latency.low_ms, latency.high_ms, form.milliseconds)
    return f"{form.milliseconds(latency.value_ms)} ({ends})"


def _user_load(load: UserLoad, level: LoadLevel) -> Table:
    """Return the load in equal parts of its time: a ramp shows where latency turns up."""
    users, each = load.users(), level.seconds / len(level.slices)
    rows = []
    for n, part in enumerate(level.slices):
        present = users.counts[users.at_seconds <= (n + 0.5) * each]
        rows.append(
            (
                f"{n * each / 60:.2f} to {(n + 1) * each / 60:.2f}",
                str(present[-1]) if len(present) else "0",
                f"{part.completed * 60 / each:.0f}",
                form.milliseconds(part.p95_ms),
            )
        )
    columns = ("minutes", "users", "invocations/min", "p95 ms")
    return Table(f"User load: {level.ended}", columns, tuple(rows))


def _timings(measured: MeasureResult) -> dict[str, Sequence[HostTiming]]:
    """Return how long each model's artefact took when it was prepared."""
    return {gated.spec.model: gated.timings for gated in measured.gated}


def _time(measured: MeasureResult, level: LoadLevel) -> Table:
    """Return the parts of the latency; those of a pipeline's steps have a table of their own."""
    timings, graph = _timings(measured), measured.config.graph or NO_GRAPH
    in_pipelines = graph.names | graph.step_names
    saturation = level.kind == "saturation"
    load = "saturation" if saturation else f"{form.rate(level.offered_per_second)} requests/s"
    rows: list[tuple[str, float | None]] = [("network and protocol", level.network_ms)]
    for split in level.server:
        if split.model in in_pipelines:
            continue
        rows += [
            *([(f"{split.model}: response cache", split.cache_ms)] if split.cache_ms else []),
            (f"{split.model}: queue", split.queue_ms),
            (f"{split.model}: compute input", split.compute_input_ms),
            *_compute(split, timings.get(split.model, ())),
            (f"{split.model}: compute output", split.compute_output_ms),
        ]
    parts = level.latencies
    rows += [
        ("send to reply, warm-up included", level.replied_ms),
        ("container latency, after warm-up", parts.container),
        ("model latency (all containers)", parts.model),
        ("overhead latency: sent after it was due", parts.overhead),
        ("end-to-end latency", parts.end_to_end),
    ]
    columns: Mapping[str, Callable[[tuple[str, float | None]], str]] = {
        "part of the latency": lambda row: row[0],
        "ms": lambda row: f"{row[1]:.3f}" if row[1] is not None else "unknown",
    }
    return table_of(f"Where the time goes at {load}, mean", columns, rows)


def _compute(
    split: ServerSplit, timings: Sequence[HostTiming]
) -> Iterator[tuple[str, float | None]]:
    """Yield the compute time, and the model's part of it where Python hosts it."""
    own = model_ms(split, timings)
    if own is None:
        yield f"{split.model}: compute infer", split.compute_infer_ms
        return
    yield f"{split.model}: compute in the Python backend", split.compute_infer_ms
    yield f"{split.model}: of which the model", own


def _batches(split: ServerSplit) -> Table:
    shares = {point: point.inferences / split.inferences for point in split.batches}
    columns: Mapping[str, Callable[[BatchPoint], str]] = {
        "batch size": lambda point: str(point.batch_size),
        "executions": lambda point: form.count(point.executions),
        "of inferences": lambda point: form.fine_percent(shares[point]),
        "compute, ms": lambda point: f"{point.compute_ms:.2f}",
        "infer/s of one instance": lambda point: (
            form.rate(point.batch_size / point.compute_ms * 1e3) if point.compute_ms else ""
        ),
    }
    shown = [point for point, share in shares.items() if share >= _LEAST_SHARE]
    table = table_of(f"Batches that {split.model} executed", columns, shown)
    rare = [point for point, share in shares.items() if share < _LEAST_SHARE]
    if not rare:
        return table
    executions = form.count(sum(point.executions for point in rare))
    rest = ("others", executions, form.fine_percent(sum(shares[p] for p in rare)), "", "")
    return replace(table, rows=(*table.rows, rest))


def _cache(use: CacheUse) -> str:
    expected = use.expected_hit_rate
    beside = f" ({form.fine_percent(expected)} expected)" if expected is not None else ""
    return (
        f"response cache of {use.model}: answered {form.fine_percent(use.hit_rate)} of "
        f"{form.count(use.requests)} requests{beside}"
    )


def _machine(level: LoadLevel) -> Iterator[str]:
    client, machine = level.client, level.machine
    priority = "real-time" if client.realtime else "ordinary"
    processes = f"{client.processes} process{'es' if client.processes != 1 else ''}"
    yield (
        f"client: {processes} at {priority} priority, {client.cpu_seconds:.2f} s of CPU, "
        f"{client.memory_mib:.0f} MiB, p99 lag {client.lag_ms:.2f} ms"
    )
    if machine is not None:
        yield f"server: {_cpu(machine)}, {_mib(machine.server_memory_mib)}"
        yield from _gpus(machine)
        if machine.triton:
            gauges = ", ".join(f"{name} {value:g}" for name, value in machine.triton)
            yield f"Triton's metrics: {gauges}"


def _cpu(machine: MachineUse) -> str:
    if machine.server_cpu_seconds is None:
        return "CPU time unknown"
    cores = machine.server_cpu_seconds / machine.seconds
    used = (
        f"{cores:.2f} of {machine.cores} cores, other processes {machine.foreign_cores or 0.0:.2f}"
    )
    if not machine.throttled_seconds:
        return used
    return f"{used}, throttled by the CPU quota for {machine.throttled_seconds:.1f} s"


def _mib(value: float | None) -> str:
    return f"{value:.0f} MiB" if value is not None else "memory unknown"


def _gpus(machine: MachineUse) -> Iterable[str]:
    if machine.no_gpu is not None:
        return [f"GPU: none ({machine.no_gpu})"]
    return [_gpu(gpu) for gpu in machine.gpus]


def _gpu(gpu: GpuUse) -> str:
    figures = {
        "%": gpu.utilization_percent,
        "MiB": gpu.memory_mib,
        "W": gpu.power_watts,
        "MHz": gpu.sm_clock_mhz,
        "C maximum": gpu.temperature_celsius_max,
    }
    figure_texts = [f"{value:.0f} {unit}" for unit, value in figures.items() if value is not None]
    figure_texts += [f"throttled: {reason}" for reason in gpu.throttled]
    figure_texts += [f"{gpu.ecc_uncorrected} ECC errors"] if gpu.ecc_uncorrected else []
    figure_texts += [name for name, on in (("MIG", gpu.mig), ("MPS", gpu.mps)) if on]
    return f"GPU {gpu.name}: {', '.join(figure_texts) or 'no figures available'}"


def _opinions(level: LoadLevel, opinion: PerfAnalyzerResult) -> Table:
    """Return the figures of both clients, timed from the send."""
    stream = level.streams[0]
    own = {item.percentile: item.value_ms for item in stream.latencies_from_send}
    rows: list[tuple[str, float | None, float]] = [
        ("completed/s", stream.achieved_per_second, opinion.achieved_per_second),
        ("p50", own[50.0], opinion.p50_ms),
        ("p95", own[95.0], opinion.p95_ms),
        ("p99", own[99.0], opinion.p99_ms),
    ]
    split = next((split for split in level.server if not split.step), None)
    if split is None or not split.ensemble:  # whose requests wait in its steps' queues
        queue_ms = split.queue_ms if split is not None else None
        rows.append(("mean queue", queue_ms, opinion.queue_ms))
    columns: Mapping[str, Callable[[tuple[str, float | None, float]], str]] = {
        "": lambda row: row[0],
        "this client": lambda row: f"{row[1]:.2f}" if row[1] is not None else "",
        "perf_analyzer": lambda row: f"{row[2]:.2f}",
        "ratio": lambda row: (
            form.ratio(row[1] / row[2]) if row[1] is not None and row[2] > 0 else ""
        ),
    }
    title = f"The same level twice, {form.rate(stream.offered_per_second)}/s offered, ms from send"
    return table_of(title, columns, rows)
