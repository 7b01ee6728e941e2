"""What a person sees of one measured configuration: the levels, and where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizer.cli.plain_table import plain_table
from optimizer.commands.measure import MeasureResult
from optimizer.configuration.serving_config import describe
from optimizer.load.level_checks import capacity_basis, why_missed, why_void
from optimizer.load.perf_analyzer import PerfAnalyzerResult
from optimizer.load.user_load import UserLoad
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.host_share import HostTiming, model_ms
from optimizer.measurement.level import GpuUse, LoadLevel, MachineUse, ServerSplit

_LEAST_SHARE = 0.01
"""Of the inferences: batch sizes that had less share a row."""


def show_measured(console: Console, measured: MeasureResult) -> None:
    """Print what `measure` found."""
    found = measured.load_test
    console.print(Text(describe(measured.config), style="bold"))
    if found.users is not None:
        console.print(_user_load(found.users, found.shown))
    else:
        console.print(_levels(found.levels))
    if found.measurement is not None:
        capacity = found.measurement
        high = capacity.capacity_high_per_second
        upper = f"{high:.0f}" if high is not None else "?"
        basis = capacity_basis(capacity)
        console.print(
            f"capacity {capacity.capacity_per_second:.0f}/s "
            f"(95% interval {capacity.capacity_low_per_second:.0f} to {upper}"
            f"{f'; {basis}' if basis else ''}): {capacity.ended}",
            style="green" if capacity.load_factor else "yellow",
            highlight=False,
            soft_wrap=True,
        )
    if found.missed is not None and (found.measurement is None or found.measurement.load_factor):
        text = f"the limit was not met: {found.missed}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    console.print(_time(found.shown, _timings(measured)))
    for split in found.shown.server:
        console.print(_batches(split))
    for line in _machine(found.shown):
        console.print(line, highlight=False, soft_wrap=True)
    if found.compared is not None and found.opinion is not None:
        console.print(_opinions(found.compared, found.opinion))
        console.print(f"it ran: {' '.join(found.opinion.command)}", highlight=False, soft_wrap=True)
    for warning in dict.fromkeys(text for level in found.levels for text in level.warnings):
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"all figures: {measured.file}", highlight=False, soft_wrap=True)


def _levels(levels: Sequence[LoadLevel]) -> Table:
    table = plain_table(
        "Load levels, ms from when a request was due",
        "offered/s", "served/s", "p50", "p95 (95% interval)", "p99", "client lag p99", "ended",
    )  # fmt: skip
    table.columns[-1].justify = "left"
    for level in sorted(levels, key=_offered):
        for stream in level.streams:
            saturation = level.kind == "saturation"
            table.add_row(
                "saturation" if saturation else f"{stream.offered_per_second:.1f}",
                f"{stream.achieved_per_second:.1f}",
                f"{stream.latency_ms(50):.1f}",
                _interval(stream.latency(95)),
                f"{stream.latency_ms(99):.1f}",
                f"{level.client.lag_ms:.1f}",
                level.ended if saturation else why_void(level) or why_missed(level) or level.ended,
            )
    return table


def _offered(level: LoadLevel) -> tuple[bool, float]:
    return level.kind != "saturation", level.load_factor


def _interval(found: Percentile) -> str:
    high = f"{found.high_ms:.1f}" if found.high_ms is not None else "?"
    return f"{found.value_ms:.1f} ({found.low_ms:.1f} to {high})"


def _user_load(load: UserLoad, level: LoadLevel) -> Table:
    """The load in equal parts of its time: a ramp shows where latency turns up."""
    table = plain_table(
        f"User load: {level.ended}", "minutes", "users", "invocations/min", "p95 ms"
    )
    users, each = load.users(), level.seconds / len(level.slices)
    for n, part in enumerate(level.slices):
        present = users.counts[users.at_seconds <= (n + 0.5) * each]
        table.add_row(
            f"{n * each / 60:.2f} to {(n + 1) * each / 60:.2f}",
            str(present[-1]) if len(present) else "0",
            f"{part.completed * 60 / each:.0f}",
            f"{part.p95_ms:.1f}" if part.p95_ms is not None else "none",
        )
    return table


def _timings(measured: MeasureResult) -> dict[str, Sequence[HostTiming]]:
    """Return how long each model's artefact took when it was prepared."""
    return {gated.spec.model: gated.timings for gated in measured.gated}


def _time(level: LoadLevel, timings: Mapping[str, Sequence[HostTiming]]) -> Table:
    load = "saturation" if level.kind == "saturation" else f"{level.offered_per_second:.1f}/s"
    table = plain_table(f"Where the time goes at {load}, mean", "", "ms")
    rows: list[tuple[str, float | None]] = [("network and protocol", level.network_ms)]
    for split in level.server:
        rows += [
            (f"{split.model}: queue", split.queue_ms),
            (f"{split.model}: compute input", split.compute_input_ms),
            *_compute(split, timings.get(split.model, ())),
            (f"{split.model}: compute output", split.compute_output_ms),
        ]
    rows.append(("send to reply, warm-up included", level.replied_ms))
    for name, value in rows:
        table.add_row(name, _ms(value))
    table.add_section()
    four = level.latencies
    table.add_row("container latency, after warm-up", _ms(four.container))
    table.add_row("model latency (all containers)", _ms(four.model))
    table.add_row("overhead latency: sent after it was due", _ms(four.overhead))
    table.add_row("end-to-end latency", _ms(four.end_to_end))
    return table


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


def _ms(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "not known"


def _batches(split: ServerSplit) -> Table:
    table = plain_table(
        f"Batches that {split.model} executed", "batch size", "executions", "share of inferences",
        "compute ms", "inferences/s of one instance",
    )  # fmt: skip
    inferences = split.inferences
    shares = {point: point.inferences / inferences for point in split.batches}
    for point, share in shares.items():
        if share >= _LEAST_SHARE:
            table.add_row(
                str(point.batch_size),
                str(point.executions),
                f"{share:.1%}",
                f"{point.compute_ms:.2f}",
                f"{point.batch_size / point.compute_ms * 1e3:.0f}" if point.compute_ms else "",
            )
    rare = [point for point, share in shares.items() if share < _LEAST_SHARE]
    if rare:
        executions = sum(point.executions for point in rare)
        table.add_row("others", str(executions), f"{sum(shares[p] for p in rare):.1%}", "", "")
    return table


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
        return "CPU time not known"
    cores = machine.server_cpu_seconds / machine.seconds
    used = f"{cores:.2f} of {machine.cores} cores, others {machine.foreign_cores or 0.0:.2f}"
    if not machine.throttled_seconds:
        return used
    return f"{used}, withheld by the CPU quota for {machine.throttled_seconds:.1f} s"


def _mib(value: float | None) -> str:
    return f"{value:.0f} MiB" if value is not None else "memory not known"


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
        "C at most": gpu.temperature_celsius_max,
    }
    known = [f"{value:.0f} {unit}" for unit, value in figures.items() if value is not None]
    known += [f"held down by {reason}" for reason in gpu.throttled]
    known += [f"{gpu.ecc_uncorrected} ECC errors"] if gpu.ecc_uncorrected else []
    known += [name for name, on in (("MIG", gpu.mig), ("MPS", gpu.mps)) if on]
    return f"GPU {gpu.name}: {', '.join(known) or 'tells nothing'}"


def _opinions(level: LoadLevel, opinion: PerfAnalyzerResult) -> Table:
    """Both timed from the send."""
    stream = level.streams[0]
    own = {item.percentile: item.value_ms for item in stream.latencies_from_send}
    queue = level.server[0].queue_ms if level.server else None
    table = plain_table(
        f"The same level twice, {stream.offered_per_second:.1f}/s offered, ms from the send",
        "", "this client", "perf_analyzer", "ratio",
    )  # fmt: skip
    rows: list[tuple[str, float | None, float]] = [
        ("served/s", stream.achieved_per_second, opinion.achieved_per_second),
        ("p50", own[50.0], opinion.p50_ms),
        ("p95", own[95.0], opinion.p95_ms),
        ("p99", own[99.0], opinion.p99_ms),
        ("queue, mean", queue, opinion.queue_ms),
    ]
    for name, ours, theirs in rows:
        ratio = f"{ours / theirs:.2f}" if ours is not None and theirs > 0 else ""
        table.add_row(name, f"{ours:.2f}" if ours is not None else "", f"{theirs:.2f}", ratio)
    return table
