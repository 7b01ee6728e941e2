"""`simulate`: predict a configuration of a calibrated study without serving it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console

from optimizer.cli.options import results_option, seed_option, settings_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line, print_sentence, print_table
from optimizer.commands.simulate import (
    PredictedServing,
    PredictedStream,
    SimulateOptions,
    SimulateResult,
    simulate_configuration,
)
from optimizer.configuration.serving_config import describe
from optimizer.report import number_formats as form
from optimizer.report.table import Table, table_of
from optimizer.simulator.predicted_values import PredictedBatcher, PredictedLevel

_LEAST_SHARE = 0.01
"""Of the inferences: batch sizes that had less share a row."""

_BAR = 30
_SIGMAS = 1.96


@click.command()
@click.argument("study")
@settings_option
@seed_option("the simulation")
@results_option
def simulate(**options: Any) -> int:
    """Predict a configuration from the measurements of STUDY (a name, or a folder)."""
    simulated = simulate_configuration(SimulateOptions(**options))
    show_what_if(OutputConsole(), simulated)
    return 0 if all(own.at_capacity is not None for own in simulated.prediction.streams) else 1


def show_what_if(console: Console, simulated: SimulateResult) -> None:
    """Print a prediction, and the measured capacity of the configuration if there is one."""
    prediction = simulated.prediction
    print_sentence(console, describe(simulated.config), "bold")
    print_line(
        console,
        f"predicted from {simulated.runs} saturated runs of {simulated.study}; nothing was "
        "served. Latencies far below saturation tend to be too low",
    )
    for own in prediction.streams:
        _show(console, own, prediction.log_sd)
    _show_batchers(console, prediction)
    trial = simulated.measured
    if trial is not None and trial.measurement is not None:
        capacity = trial.measurement.capacity_per_second
        print_line(console, f"measured in trial {trial.number}: {capacity:.0f}/s")


def _show(console: Console, own: PredictedStream, sd: float) -> None:
    limit, rate = own.stream.limit, own.saturation_per_second
    print_table(console, _levels(own))
    low, high = (rate * math.exp(sign * _SIGMAS * sd) for sign in (-1, 1))
    print_line(
        console,
        f"saturates at {rate:.0f}/s (95% interval {low:.0f} to {high:.0f}, from the uncertainty of "
        "the service times)",
    )
    name = f"the limit of {limit.latency_ms:g} ms (p{limit.percentile:g})"
    if own.at_capacity is None and own.floor_ms > limit.latency_ms:
        text = f"{name} is missed at any load: {own.floor_ms:.1f} ms when almost idle"
        print_sentence(console, text, "yellow")
    elif own.at_capacity is None:
        text = f"{name} is met when almost idle ({own.floor_ms:.1f} ms), another stream's is not"
        print_sentence(console, text, "yellow")
    else:
        capacity = own.capacity_per_second
        text = f"{name} is met up to {capacity:.0f}/s, {capacity / rate:.0%} of saturation"
        print_sentence(console, text, "green")


def _show_batchers(console: Console, prediction: PredictedServing) -> None:
    """Print the executed batches at the capacity; of several models, of the bottleneck."""
    at_capacity = prediction.streams[0].at_capacity
    if at_capacity is None:
        return
    rate, batchers = prediction.capacity.per_second, at_capacity.batchers
    if len(batchers) > 1:
        print_table(console, _batchers(rate, batchers))
        saturated = prediction.capacity.saturation.bottleneck.name
        print_line(console, f"saturation is reached first by {saturated}")
    of_model = f" of {at_capacity.bottleneck.name}" if len(batchers) > 1 else ""
    title = f"Predicted batches{of_model} at {form.rate(rate)} requests/s"
    print_table(console, _batches(title, at_capacity.bottleneck.batches))


def _batchers(rate: float, batchers: Sequence[PredictedBatcher]) -> Table:
    columns: Mapping[str, Callable[[PredictedBatcher], str]] = {
        "model": lambda own: own.name,
        "utilisation": lambda own: form.percent(own.utilisation),
        "mean queue": lambda own: form.milliseconds(own.mean_queue_ms),
        "mean batch": lambda own: f"{own.mean_batch:.1f}",
    }
    return table_of(f"Predicted models at {form.rate(rate)} requests/s, ms", columns, batchers)


def _levels(own: PredictedStream) -> Table:
    saturation = own.saturation_per_second
    columns: Mapping[str, Callable[[PredictedLevel], str]] = {
        "offered/s": lambda level: form.rate(level.offered_per_second),
        "of saturation": lambda level: form.percent(level.offered_per_second / saturation),
        "p50": lambda level: form.milliseconds(level.latency_ms(50)),
        "p95": lambda level: form.milliseconds(level.latency_ms(95)),
        "p99": lambda level: form.milliseconds(level.latency_ms(99)),
        "mean queue": lambda level: form.milliseconds(level.mean_queue_ms),
        "mean batch": lambda level: f"{level.bottleneck.mean_batch:.1f}",
        "utilisation": lambda level: form.percent(level.utilisation),
    }
    return table_of(f"Predicted load levels of {own.stream.name}, ms", columns, own.levels)


def _batches(title: str, batches: Mapping[int, int]) -> Table:
    """Return the share of the inferences that is executed in each batch size."""
    inferences = sum(size * count for size, count in batches.items())
    shares = {size: size * count / inferences for size, count in batches.items()}
    most = max(shares.values())
    rows = [
        (str(size), form.fine_percent(share), "#" * round(_BAR * share / most))
        for size, share in shares.items()
        if share >= _LEAST_SHARE
    ]
    rest = sum(share for share in shares.values() if share < _LEAST_SHARE)
    if rest > 0:
        rows.append(("others", form.fine_percent(rest), ""))
    return Table(title, ("batch size", "inferences", ""), tuple(rows), texts=("",))
