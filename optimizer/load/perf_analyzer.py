"""Cross-check of a load level: NVIDIA's perf_analyzer sends the same requests.

It times from the send, so a request that it sends late does not count as latency.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import LoadTestFailure
from optimizer.files.owned_names import temporary_folder
from optimizer.triton.connections import environment_without_proxies
from optimizer.workload.arrivals import ArrivalName
from optimizer.workload.data_types import encoded
from optimizer.workload.streams import Tensors

NAME = "perf_analyzer"
INSTALL_HINT = (
    "it is part of the tritonclient wheels 2.48 to 2.51 (data/bin), and since 2.60 of the "
    "perf-analyzer wheels"
)
DISTRIBUTIONS = ("poisson", "constant")
"""Values of its --request-distribution."""

_MARGIN_SECONDS = 60.0
_WINDOWS = 3
"""Measurement windows; its report covers all of them together."""

_ALWAYS_STABLE = 999
"""Percent of deviation that it accepts between windows, so that the first three are taken."""


@dataclass(frozen=True)
class PerfAnalyzerResult:
    """Result of perf_analyzer; latencies in ms from the send.

    Attributes:
        achieved_per_second: rate of good replies.
        queue_ms: mean queue time in the server, by its statistics.
        cpu_seconds: process-CPU time of perf_analyzer, start and warm-up included.
    """

    achieved_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    command: tuple[str, ...]
    cpu_seconds: float


@dataclass(frozen=True)
class PerfAnalyzerJob:
    """The level to run.

    Attributes:
        address: host:port of the server's port for `protocol`.
        rate_per_second: request rate, independent of replies; None runs a closed loop.
        seconds: measured time.
        concurrency: requests outstanding in a closed loop.
        batch_size: inferences in each of `requests`.
        batched: whether their tensors have a batch axis.
        cores: CPU cores that it may use; None for all.
        version: of the model; empty for the newest that is served.
    """

    model: str
    protocol: Literal["grpc", "http"]
    address: str
    requests: Sequence[Tensors]
    rate_per_second: float | None
    seconds: float
    arrivals: ArrivalName = "poisson"
    concurrency: int = 1
    batch_size: int = 1
    batched: bool = True
    cores: Sequence[int] | None = None
    version: str = ""


def run_perf_analyzer(binary: Path, job: PerfAnalyzerJob) -> PerfAnalyzerResult:
    """Run perf_analyzer to its end, which takes a little longer than the level.

    Raises:
        LoadTestFailure: when it fails, with its output, or does not end.
    """
    with temporary_folder() as folder:
        data, table = folder / "input.json", folder / "latency.csv"
        data.write_text(input_data(job.requests, batched=job.batched))
        command = (str(binary), *_arguments(job), "--input-data", str(data), "-f", str(table))
        cpu_seconds = _run(command, job)
        if not table.exists():
            raise LoadTestFailure(f"{NAME} wrote no table: {' '.join(command)}")
        return _result(table.read_text(), command, cpu_seconds, job.batch_size)


def _arguments(job: PerfAnalyzerJob) -> list[str]:
    window_ms = round(job.seconds / _WINDOWS * 1e3)
    if job.rate_per_second is None:
        load = ["--concurrency-range", str(job.concurrency)]
    else:
        load = [
            "--request-rate-range", f"{job.rate_per_second:.3f}",
            "--request-distribution", job.arrivals,
        ]  # fmt: skip
    return [
        "-m", job.model, "-i", job.protocol, "-u", job.address, "--async", *load,
        "-b", str(job.batch_size), *(["-x", job.version] if job.version else []),
        "--measurement-interval", str(window_ms), "--max-trials", str(_WINDOWS),
        "--stability-percentage", str(_ALWAYS_STABLE), "--percentile", "95",
    ]  # fmt: skip


def input_data(requests: Sequence[Tensors], *, batched: bool = True) -> str:
    """Return requests as JSON for --input-data, without the batch axis.

    Tensors are in base64, because perf_analyzer reads no FP16 and no binary texts from lists.
    """
    inferences = [
        {name: array[n] if batched else array for name, array in tensors.items()}
        for tensors in requests
        for n in range(len(next(iter(tensors.values()))) if batched else 1)
    ]
    entries = [{name: _entry(array) for name, array in each.items()} for each in inferences]
    return json.dumps({"data": entries})


def _entry(array: NDArray[Any]) -> dict[str, Any]:
    content = {"b64": base64.b64encode(encoded(np.asarray(array))).decode()}
    return {"content": content, "shape": list(array.shape)}


def _run(command: Sequence[str], job: PerfAnalyzerJob) -> float:
    def pin_to_cores() -> None:
        if job.cores is not None:
            os.sched_setaffinity(0, job.cores)

    before = os.times()
    with subprocess.Popen(
        command,
        env=environment_without_proxies(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=pin_to_cores,  # noqa: PLW1509 - one call to the kernel, no locks
    ) as process:
        try:
            # It needs two windows more: one to warm up, one to end.
            output, _ = process.communicate(timeout=2 * job.seconds + _MARGIN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LoadTestFailure(f"{NAME} did not end: {' '.join(command)}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise LoadTestFailure(f"{NAME} ended with status {process.returncode}: {output.strip()}")
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


def _result(
    table: str, command: Sequence[str], cpu_seconds: float, batch_size: int
) -> PerfAnalyzerResult:
    rows = list(csv.DictReader(table.splitlines()))
    if not rows:
        raise LoadTestFailure(f"{NAME} measured nothing: {' '.join(command)}")
    row: Mapping[str, str] = rows[0]
    return PerfAnalyzerResult(
        achieved_per_second=float(row["Inferences/Second"]) / batch_size,
        p50_ms=float(row["p50 latency"]) / 1e3,
        p95_ms=float(row["p95 latency"]) / 1e3,
        p99_ms=float(row["p99 latency"]) / 1e3,
        queue_ms=float(row["Server Queue"]) / 1e3,
        command=tuple(command),
        cpu_seconds=cpu_seconds,
    )
