"""`optimizer run` over a recorded table, in processes of its own that faults are injected into.

Everything is real but the server: the phases, the files, the journal, the messages and the exit
code. What a configuration measures depends on nothing but the configuration, so that a disturbed
study can be compared with an undisturbed one, byte for byte but for its times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from optimizer import cli
from optimizer.commands import trial_site
from optimizer.commands.replay import open_table
from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.certification import CertificationTask
from optimizer.machine.slots import Slot
from optimizer.measurement.estimates import Percentile
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel
from optimizer.search.evaluator import Evaluator
from optimizer.search.prepared import Prepared
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedTable
from optimizer.study.directory import StudyDirectory
from tests.unit.fake_runs import FakeRuns

TABLE = "short_sequences"
TRIALS = 15

_START = multiprocessing.get_context("forkserver")
# What the command imports when it is needed is loaded once for all processes.
_START.set_forkserver_preload([__name__, "optimizer.cli.run"])

Fault = Callable[[pytest.MonkeyPatch], None]
"""Changes something in the process before the run starts."""


def no_fault(_: pytest.MonkeyPatch) -> None:
    """Change nothing."""


class TableEvaluator:
    """Measures a configuration as the table has it, in every process alike."""

    def __init__(self, table: RecordedTable) -> None:
        self._table = table

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        return _reported(self._of(config).evaluate(config, slot, prune_below))

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        return _reported(self._of(config).saturate(config, slot))

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        return _reported(self._of(config).calibrate(config, slot))

    def confirm(self, config: ServingConfig, slot: Slot, task: CertificationTask) -> Evaluation:
        evaluation = self.evaluate(config, slot)
        measurement = evaluation.measurement
        assert measurement is not None, "finalists have met the limits"
        [saturated] = measurement.levels
        held = replace(saturated, kind="open_loop", load_factor=measurement.load_factor)
        return replace(evaluation, measurement=replace(measurement, levels=(saturated, held)))

    def _of(self, config: ServingConfig) -> RecordedEvaluator:
        return RecordedEvaluator(self._table, np.random.default_rng(int(config.digest[:8], 16)))


def _reported(evaluation: Evaluation) -> Evaluation:
    """With the percentiles that a study's records have and the table has not."""
    if evaluation.measurement is None:
        return evaluation
    levels = tuple(map(_with_percentiles, evaluation.measurement.levels))
    return replace(evaluation, measurement=replace(evaluation.measurement, levels=levels))


def _with_percentiles(level: LoadLevel) -> LoadLevel:
    def latencies(count: int) -> tuple[Percentile, ...]:
        return tuple(Percentile(p, 5.0, 5.0, 5.0, count, count) for p in (50.0, 95.0, 99.0))

    streams = tuple(replace(each, latencies=latencies(each.sent)) for each in level.streams)
    return replace(level, streams=streams)


class _TableRuns(FakeRuns):
    """Runs that measure by the table."""

    @contextmanager
    def _evaluates(self, *_: object) -> Iterator[tuple[Evaluator, Prepared]]:
        yield TableEvaluator(open_table(TABLE)), self._prepared()


@dataclass(frozen=True)
class Replayed:
    """A study of the table and the processes that run it.

    Attributes:
        folder: of everything that the processes write.
        results: folder of the study and of temporary files; `folder` by default.
    """

    folder: Path
    sampler: str = "random"
    results: Path | None = None
    fault: Fault = no_fault

    @property
    def directory(self) -> StudyDirectory:
        """The study."""
        return StudyDirectory((self.results or self.folder) / "results" / "one")

    @property
    def temporary(self) -> Path:
        """Where temporary files go."""
        return (self.results or self.folder) / "tmp"

    @property
    def errors(self) -> str:
        """What the last process wrote to its error output."""
        return (self.folder / "errors.txt").read_text()

    def start(self) -> BaseProcess:
        """Start `optimizer run`, or resume it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = _START.Process(target=self._run)
        process.start()
        return process

    def run(self) -> int:
        """Run to the end; return the exit code."""
        process = self.start()
        process.join(120)
        code = process.exitcode
        process.kill()
        assert code is not None, "it did not end"
        return code

    def _run(self) -> None:
        for number, name in ((1, "output.txt"), (2, "errors.txt")):
            os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        self.temporary.mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = str(self.temporary)
        patch = pytest.MonkeyPatch()
        runs = _TableRuns(self.folder, patch, self.directory.root.parent)
        recorded = open_table(TABLE).space
        runs.space = replace(
            runs.space,
            search_space=recorded.search_space,
            workload=recorded.workload,
            price=recorded.price,
            demand=recorded.demand,
        )
        patch.setattr(trial_site, "open_space", lambda *_, **__: runs.space)
        self.fault(patch)
        options = ["--results", runs.results, "--cache", self.folder / "cache"]
        choices = ["--sampler", self.sampler, "--trials", TRIALS, "--timeout", "1h"]
        cli.main(["run", "table.yaml", *map(str, options), *map(str, choices)])

    def content(self) -> dict[str, Any]:
        """Everything that a finished study has found, without times."""
        directory = self.directory
        summary = directory.read_json(directory.summary)
        best = sorted(path for path in directory.best.rglob("*") if path.is_file())
        return {
            "trials": _records(directory.trials.folder),
            "confirmations": _records(directory.confirmations.folder),
            "calibration": _records(directory.calibration.folder),
            "told": told(directory),
            "summary": {key: summary[key] for key in ("best", "baseline", "trials", "ended")},
            "best": {str(p.relative_to(directory.best)): p.read_bytes() for p in best},
        }

    def leftovers(self) -> list[Path]:
        """Unfinished files and temporary folders."""
        hidden = (path for path in self.directory.root.rglob(".*") if path.name != ".gitkeep")
        return [*hidden, *self.temporary.iterdir()]


def _records(folder: Path) -> dict[str, Any]:
    records = {path.name: json.loads(path.read_text()) for path in folder.glob("[0-9]*.json")}
    for record in records.values():
        del record["seconds"]
    return records


def told(directory: StudyDirectory) -> dict[int, list[Any]]:
    """State and values of each trial by the journal, once for each time that it was told."""
    results: dict[int, list[Any]] = {}
    for line in directory.journal.read_text().splitlines():
        entry = json.loads(line)
        is_state = entry["op_code"] == JournalOperation.SET_TRIAL_STATE_VALUES
        if is_state and TrialState(entry["state"]).is_finished():
            results.setdefault(entry["trial_id"], []).append([entry["state"], entry["values"]])
    return results
