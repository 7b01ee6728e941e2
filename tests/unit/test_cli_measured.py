"""What a person sees of one measured configuration."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from optimizer.artifacts.accuracy import Accuracy
from optimizer.cli.measurement_tables import show_measured
from optimizer.commands.measure import LoadTestResult, MeasureResult
from optimizer.load.perf_analyzer import PerfAnalyzerResult
from optimizer.load.user_load import Phase, UserLoad
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.host_share import HostTiming
from optimizer.measurement.level import BatchPoint, LoadLevel, Measurement, ServerSplit, Slice
from optimizer.measurement.resource_use import ClientUse, GpuUse, MachineUse
from optimizer.study.gated_artifact import GatedArtifact
from tests.unit.studies import four_points, level

GOLDEN = Path(__file__).parents[1] / "golden"
SPACE = four_points()
CONFIG = SPACE.config(SPACE.baseline)

SPLIT = ServerSplit(
    "bert", 200, 5.0, 0.25, 12.5, 0.125,
    (BatchPoint(1, 2, 2.0), BatchPoint(4, 40, 8.0), BatchPoint(8, 60, 13.0)),
)  # fmt: skip
MACHINE = MachineUse(2.0, 2, 3.0, 512.0, 0.25, no_gpu="the trial runs on no GPU",
                     triton=(("nv_cpu_utilization", 0.75),))  # fmt: skip
CLIENT = ClientUse(1, 0.5, 80.0, 0.25, longest_lag_ms=5.0, realtime=True)


def served(load_factor: float, p95_ms: float) -> LoadLevel:
    found = level(load_factor, p95_ms)
    [stream] = found.streams
    tail = Percentile(95.0, p95_ms, 0.9 * p95_ms, None, 1000, 120.0)
    latencies = tuple(tail if p.percentile == 95 else p for p in stream.latencies)
    stream = replace(stream, latencies=latencies, latencies_from_send=latencies,
                     mean_from_send_ms=stream.mean_ms - 0.25)  # fmt: skip
    return replace(
        found,
        streams=(stream,),
        server=(SPLIT,),
        client=CLIENT,
        machine=MACHINE,
        replied_ms=20.0,
        ended="its time was up",
        warnings=("two others took part",),
    )


SATURATION = replace(level(0.5, kind="saturation"), ended="its rate is known to 1.2%")
LEVELS = (SATURATION, served(0.475, 120.0), served(0.4, 90.0))
OPINION = PerfAnalyzerResult(199.0, 40.0, 95.0, 110.0, 4.5, ("perf_analyzer", "-m", "bert"), 1.0)


def shown(found: LoadTestResult, *timings: HostTiming) -> str:
    gated = GatedArtifact(
        CONFIG.models[0].artifact, "ab", 0.0, Accuracy(1, 1, 1, 0, 64), None, None, timings=timings
    )
    file = io.StringIO()
    measured = MeasureResult(Path("results/measured.json"), CONFIG, (gated,), found)
    show_measured(Console(file=file, width=100), measured)
    return file.getvalue()


def test_a_capacity_and_where_the_time_goes() -> None:
    measurement = Measurement(LEVELS, 0.42, 0.4, None, 500.0, "its load time is spent")
    found = LoadTestResult(LEVELS, LEVELS[-1], measurement, compared=LEVELS[-1], opinion=OPINION)
    assert shown(found) == (GOLDEN / "measured.txt").read_text()


def test_the_models_own_part_of_the_compute_time_is_told_where_it_was_timed() -> None:
    text = shown(LoadTestResult(LEVELS, LEVELS[-1]), HostTiming(1, 1.0, 0.25))
    assert re.search(r"bert: compute in the Python backend +. +12\.500", text)
    assert re.search(r"bert: of which the model +. +3\.125", text)
    assert "compute infer" not in text


def test_users_are_shown_minute_by_minute() -> None:
    load = UserLoad((Phase(2, 60.0, 2.0),), 0.0)
    slices = (Slice(30, 40.0), Slice(0, None))
    at = replace(level(0.1), kind="user_load", slices=slices, seconds=2.0, ended="its time was up")
    text = shown(LoadTestResult((at,), at, users=load))
    assert "User load: its time was up" in text
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["0.00", "to", "0.02", "2", "1800", "40.0"] in lines
    assert ["0.02", "to", "0.03", "3", "0", "-"] in lines


@pytest.mark.parametrize(
    ("gpu", "line"),
    [
        (
            GpuUse("GPU-1", "NVIDIA T4", 87.4, 3011.0, 68.2, 1350.0, 71.0),
            "GPU NVIDIA T4: 87 %, 3011 MiB, 68 W, 1350 MHz, 71 C maximum",
        ),
        (
            GpuUse("GPU-1", "NVIDIA T4", None, None, None, 600.0, None, ("HwThermalSlowdown",),
                   2, mig=True, mps=False),
            "GPU NVIDIA T4: 600 MHz, throttled: HwThermalSlowdown, 2 ECC errors, MIG",
        ),
        (
            GpuUse("GPU-1", "NVIDIA T4", None, None, None, None, None),
            "GPU NVIDIA T4: no figures available",
        ),
    ],
)  # fmt: skip
def test_a_gpu_is_said_as_far_as_it_tells(gpu: GpuUse, line: str) -> None:
    at = replace(served(0.4, 90.0), machine=replace(MACHINE, gpus=(gpu,), no_gpu=None))
    assert line in shown(LoadTestResult((at,), at)).splitlines()


def test_a_limit_that_was_missed_is_said_once() -> None:
    late = "p95 of bert 120.0 ms, over the limit of 100 ms"
    alone = shown(LoadTestResult(LEVELS[1:2], LEVELS[1], missed=late))
    assert alone.count(f"The limit was not met: {late}") == 1
    some = Measurement(LEVELS, 0.4, 0.4, None, 500.0, "its load time is spent")
    assert "The limit was not met" in shown(LoadTestResult(LEVELS, LEVELS[2], some, missed=late))
    none = Measurement(LEVELS, 0.0, 0.0, 0.4, 500.0, f"even at 237.5/s: {late}")
    assert "The limit was not met" not in shown(
        LoadTestResult(LEVELS, LEVELS[2], none, missed=none.ended)
    )
