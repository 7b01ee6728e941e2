"""What a run of thousands of trials costs beside its measurements:
`python -m tests.benchmarks.long_run`.

A whole run, as `run` does it, whose levels come from a function and have as much detail as real
ones, down to the digits of their numbers. So all of the time is the optimizer's own: proposals,
records, Optuna's journal, logs, progress and files for the dashboard. One table has CPU time per
trial, memory and bytes on the disk in windows of trials; the other what it takes to read the study
with `status`, `report` and `dashboard`, and to resume it.

The space has 85,000 valid configurations, eight times as many as a run has trials. In one of 21,000
two of five proposals repeat an earlier trial in the end, so that a trial has the time of almost two
proposals, which says nothing of how that time grows.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pandas as pd

from optimizer.artifacts.accuracy import Accuracy
from optimizer.cli import OBJECTS_BETWEEN_COLLECTIONS
from optimizer.commands import run
from optimizer.commands.dashboard import DashboardOptions, open_dashboard
from optimizer.commands.run import run_study
from optimizer.commands.run_context import RunContext
from optimizer.commands.run_options import RunOptions
from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.levels import SLICES
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import Slot
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit, Slice
from optimizer.measurement.resource_use import MachineUse
from optimizer.search.prepared import Prepared
from optimizer.search.winner_phase import WinnerPhase
from optimizer.search.worker_pool import InlinePool
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, TrialFinished, Watcher
from optimizer.study.gated_artifact import GatedArtifact
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor
from tests.unit.studies import MACHINE, SETTING, FakeEvaluator, bounded, capacity_of, ok
from tests.unit.whole_studies import of_file

WINDOW = 100
"""Trials over which CPU time per trial is taken."""

PARAMETERS = {
    "runtime": ["onnxruntime", "openvino", "pytorch"],
    "precision": ["fp32", "bf16", "int8"],
    "batching": [True],
    "max_batch_size": list(range(1, 129)),
    "max_queue_delay_us": [125 * n for n in range(32)],
    "instance_count": [1, 2],
    "intra_op_threads": [1, 2],
}


def large_space(folder: Path) -> Space:
    """A space with far more configurations than a run has trials."""
    return of_file(folder, parameters=PARAMETERS, server={"launcher": "embedded"})


def evaluation(config: ServingConfig) -> Evaluation:
    """What a configuration serves, in as much detail as a real trial: three levels."""
    simple = ok(capacity_of(config))
    assert simple.measurement is not None
    saturation, capacity = simple.measurement.levels
    digits = Random(config.digest)
    levels = tuple(_detailed(each, digits) for each in (saturation, capacity, capacity))
    return replace(simple, measurement=replace(simple.measurement, levels=levels))


def _detailed(level: LoadLevel, digits: Random) -> LoadLevel:
    def like(value: float) -> float:
        return value * digits.uniform(0.99, 1.0)

    def percentiles() -> tuple[Percentile, ...]:
        return tuple(
            replace(p, value_ms=like(p.value_ms), low_ms=like(p.low_ms)) for p in stream.latencies
        )

    [stream] = level.streams
    batches = tuple(BatchPoint(size, 100 + size, like(0.37 * size)) for size in (1, 2, 4, 8))
    times = (like(1.234), like(0.05), like(7.89), like(0.05))
    split = ServerSplit(stream.name, 1000, *times, batches, request_ms=like(9.2))
    return replace(
        level,
        streams=(replace(stream, latencies=percentiles(), latencies_from_send=percentiles()),),
        server=(split,),
        machine=MachineUse(1.0, 2, like(1.7), like(900.0), None, no_gpu="no driver"),
        replied_ms=like(9.5),
        slices=tuple(Slice(100 + n, like(stream.mean_ms + n)) for n in range(SLICES)),
        ended="the limit is met with a probability of 95 %",
    )


@dataclass
class SimulatedEvaluator(FakeEvaluator):
    """Keeps no list of what it was asked."""

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        return evaluation(config)

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        return bounded(1.05 * capacity_of(config))


@dataclass
class SimulatedSite:
    """Where no server is started, see `TrialSite`."""

    files: Path
    slots: None = None

    def read_space(self, space: Path | Space) -> Space:
        assert isinstance(space, Space)
        return space

    def require_machine(self, space: Space, directory: StudyDirectory) -> tuple[Slot, Machine]:
        return SETTING.slot, MACHINE

    def note(self, space: Space) -> None:
        return None

    @contextmanager
    def evaluator(
        self, run: RunContext, watch: Watcher
    ) -> Iterator[tuple[SimulatedEvaluator, Prepared]]:
        space = run.space.search_space
        payloads = run.space.workload.streams[0].payloads
        files = ModelFiles(self.files, payloads, (OutputTensor("logits", "FP32", (2,)),))
        accuracy = Accuracy(1.0, 1.0, 1.0, 0.0, 64)
        gated = tuple(
            GatedArtifact(spec, "ab", 1.0, accuracy, None, None) for spec in space.artifacts
        )
        prepared = Prepared(space, dict.fromkeys(space.artifacts, files), gated, 1.0)
        yield SimulatedEvaluator(), prepared

    @contextmanager
    def pool(self, run: RunContext, prepared: Prepared, watch: Watcher) -> Iterator[InlinePool]:
        yield InlinePool(SimulatedEvaluator(), run.slot)


@dataclass
class Course:
    """A watcher that notes, every `WINDOW` trials, what the run has cost so far.

    A proposal that repeats an earlier trial is told its result, and is no trial.
    """

    directory: StudyDirectory
    rows: list[dict[str, float]] = field(default_factory=list)
    trials: int = 0
    proposals: int = 0
    cpu_seconds: float = 0.0

    def __call__(self, event: Event) -> None:
        if not isinstance(event, TrialFinished):
            return
        self.trials += 1
        if self.trials % WINDOW == 0:
            # Trials have the numbers of their proposals.
            now, proposals = time.process_time(), event.record.number + 1
            spent, made = now - self.cpu_seconds, proposals - self.proposals
            self.cpu_seconds, self.proposals = now, proposals
            self.rows.append(
                {
                    "trials": self.trials,
                    "proposals": proposals,
                    "ms CPU per trial": 1e3 * spent / WINDOW,
                    "ms CPU per proposal": 1e3 * spent / made,
                    "resident MiB": resident_mib(),
                    "journal MB": self.directory.journal.stat().st_size / 1e6,
                }
            )


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def bytes_in(folder: Path) -> int:
    """What a folder takes on the disk, whole blocks as `du` counts them."""
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))


def run_trials(root: Path, trials: int, sampler: str) -> tuple[Course, StudyDirectory]:
    """Run a study, or go on with it, up to a number of trials."""
    space = large_space(root / "space")
    files = root / "artifact"
    files.mkdir(exist_ok=True)
    (files / "model.xml").write_text("a graph")
    options = RunOptions(
        space, trials=trials, sampler=sampler, results=root / "results", cache=root / "cache"
    )
    directory = StudyDirectory(options.results / space.study)
    course = Course(directory)

    @contextmanager
    def site(*_: object) -> Iterator[SimulatedSite]:
        yield SimulatedSite(files)

    # Nothing is started for the winner, and no disk is waited for.
    with (
        patch.object(run, "open_site", site),
        patch.object(WinnerPhase, "run", lambda *_, **__: None),
        patch.object(os, "fsync", lambda _: None),
    ):
        run_study(options, course)
    return course, directory


def reading_times(root: Path, directory: StudyDirectory) -> list[dict[str, object]]:
    """How long it takes to read the study, each command in a process of its own."""
    results = str(directory.root.parent)
    rows = []
    for name in ("status", "report"):
        command = [sys.executable, "-m", "optimizer", name, directory.name, "--results", results]
        rows.append({"what": name, **_timed(lambda: _call(command))})  # noqa: B023
    page = directory.root / "report.html"
    rows[-1]["MB"] = page.stat().st_size / 1e6
    rows.append({"what": "dashboard: first page and its data", **_timed(lambda: _open(directory))})
    return rows


def _timed(call: Callable[[], object]) -> dict[str, object]:
    def cpu() -> float:
        own, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    started, cpu_started = time.perf_counter(), cpu()
    call()
    return {"seconds": time.perf_counter() - started, "CPU seconds": cpu() - cpu_started}


def _call(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _open(directory: StudyDirectory) -> None:
    request = DashboardOptions(directory.name, 0, results=directory.root.parent)
    with open_dashboard(request) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            for path in ("/dashboard/", "/api/studies", "/api/studies/0?after=0"):
                with urllib.request.urlopen(address + path) as reply:
                    reply.read()
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--folder", type=Path, help="keep the study here")
    chosen = parser.parse_args()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as the command line does
    with TemporaryDirectory(prefix="long-run-") as temporary:
        root = chosen.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        profiler = cProfile.Profile()
        if chosen.profile:
            profiler.enable()
        course, directory = run_trials(root, chosen.trials, chosen.sampler)
        profiler.disable()
        if chosen.profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
        table = pd.DataFrame(course.rows)
        shown = table[table["trials"].isin([100, 200, 300, 500, 1000, 2000, 5000, 7500, 10_000])]
        print(shown.round(2).to_string(index=False))
        last = len(list(directory.trials.folder.iterdir()))
        print(f"{last} records, {bytes_in(directory.root) / 1e6:.1f} MB on the disk")
        resumed = _timed(lambda: run_trials(root, chosen.trials + WINDOW, chosen.sampler))
        rows = [*reading_times(root, directory), {"what": f"resume, {WINDOW} trials", **resumed}]
        print(pd.DataFrame(rows).round(2).to_string(index=False))
        print(json.dumps({"bytes": bytes_in(directory.root), "rows": course.rows[-1:]}))


if __name__ == "__main__":
    main()
