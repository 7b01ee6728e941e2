"""`simulate`: predict a configuration of a calibrated study without serving it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import click
from rich.console import Console

from optimizer.cli.options import results_option, seed_option, settings_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line, print_sentence, print_table
from optimizer.commands.simulate import (
    PredictedStream,
    SimulateOptions,
    SimulateResult,
    simulate_configuration,
)
from optimizer.configuration.serving_config import describe
from optimizer.report import number_formats as form
from optimizer.report.table import Table, table_of
from optimizer.simulator.prediction import PredictedLevel

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
    """Predict a configuration from what STUDY (a name, or a folder) has measured of others."""
    prediction = simulate_configuration(SimulateOptions(**options))
    show_what_if(OutputConsole(), prediction)
    return 0 if all(own.at_capacity is not None for own in prediction.streams) else 1


def show_what_if(console: Console, prediction: SimulateResult) -> None:
    """Print a prediction, and the measured capacity of the configuration if there is one."""
    print_sentence(console, describe(prediction.config), "bold")
    print_line(
        console,
        f"predicted from {prediction.runs} saturated runs of {prediction.study}; nothing was "
        "served. Latencies far below saturation tend to be too low",
    )
    for own in prediction.streams:
        _show(console, own)
    trial = prediction.measured
    if trial is not None and trial.measurement is not None:
        capacity = trial.measurement.capacity_per_second
        print_line(console, f"measured in trial {trial.number}: {capacity:.0f}/s")


def _show(console: Console, own: PredictedStream) -> None:
    limit, sd = own.stream.limit, own.curve.log_sd
    print_table(console, _levels(own))
    rate = own.capacity.saturation.per_second
    low, high = (rate * math.exp(sign * _SIGMAS * sd) for sign in (-1, 1))
    print_line(
        console,
        f"saturates at {rate:.0f}/s (95% interval {low:.0f} to {high:.0f}, from the uncertainty of "
        "the service times)",
    )
    name = f"the limit of {limit.latency_ms:g} ms (p{limit.percentile:g})"
    if own.at_capacity is None:
        text = f"{name} is missed at any load: {own.capacity.floor_ms:.1f} ms when almost idle"
        print_sentence(console, text, "yellow")
        return
    capacity = own.capacity.per_second
    text = f"{name} is met up to {capacity:.0f}/s, {capacity / rate:.0%} of saturation"
    print_sentence(console, text, "green")
    print_table(console, _batches(own.at_capacity))


def _levels(own: PredictedStream) -> Table:
    saturation = own.capacity.saturation.per_second
    columns: Mapping[str, Callable[[PredictedLevel], str]] = {
        "offered/s": lambda level: form.rate(level.offered_per_second),
        "of saturation": lambda level: form.percent(level.offered_per_second / saturation),
        "p50": lambda level: form.milliseconds(level.latency_ms(50)),
        "p95": lambda level: form.milliseconds(level.latency_ms(95)),
        "p99": lambda level: form.milliseconds(level.latency_ms(99)),
        "mean queue": lambda level: form.milliseconds(level.mean_queue_ms),
        "mean batch": lambda level: f"{_mean(level.batches):.1f}",
        "utilisation": lambda level: form.percent(level.utilisation),
    }
    return table_of(f"Predicted load levels of {own.stream.name}, ms", columns, own.levels)


def _batches(level: PredictedLevel) -> Table:
    """Return the share of the inferences that is executed in each batch size."""
    inferences = sum(size * count for size, count in level.batches.items())
    shares = {size: size * count / inferences for size, count in level.batches.items()}
    most = max(shares.values())
    rows = [
        (str(size), form.fine_percent(share), "#" * round(_BAR * share / most))
        for size, share in shares.items()
        if share >= _LEAST_SHARE
    ]
    rest = sum(share for share in shares.values() if share < _LEAST_SHARE)
    if rest > 0:
        rows.append(("others", form.fine_percent(rest), ""))
    title = f"Predicted batches at {form.rate(level.offered_per_second)} requests/s"
    return Table(title, ("batch size", "inferences", ""), tuple(rows), texts=("",))


def _mean(batches: Mapping[int, int]) -> float:
    return sum(size * count for size, count in batches.items()) / sum(batches.values())
