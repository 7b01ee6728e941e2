"""Whole runs of `run_study` without a server: what is measured comes from a function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.accuracy import Accuracy
from optimizer.commands import run as wiring
from optimizer.commands import run_context, trial_site
from optimizer.commands.run import RunResult, run_study
from optimizer.commands.run_options import RunOptions
from optimizer.search.evaluator import Evaluator
from optimizer.search.prepared import Prepared
from optimizer.study.events import Watcher
from optimizer.study.gated_artifact import GatedArtifact
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor
from tests.unit.studies import MACHINE, SETTING, FakeEvaluator
from tests.unit.whole_studies import of_file


class FakeRuns:
    """Runs of one study of `whole_studies.CONTENT`, one after the other, as processes would be.

    Args:
        results: folder of the studies; one in `root` by default.

    Attributes:
        evaluator: answers for the server; a new one for each run.
    """

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, results: Path | None = None
    ) -> None:
        self.results = results or root / "results"
        self.space = of_file(root / "space", server={"launcher": "embedded"})
        self.evaluator = FakeEvaluator()
        self._artifact = root / "artifact"
        self._artifact.mkdir(exist_ok=True)
        (self._artifact / "model.xml").write_text("a graph")
        self._cache = root / "cache"
        monkeypatch.setattr(trial_site, "require_machine", lambda *_: (SETTING.slot, MACHINE))
        for module in (run_context, wiring):
            monkeypatch.setattr(module, "require_packages", lambda *_: None)
        monkeypatch.setattr(run_context.RunContext, "evaluator", self._evaluates)

    @property
    def directory(self) -> Path:
        """The study's folder."""
        return self.results / self.space.study

    def run(self, watch: Watcher = lambda _: None, **options: Any) -> RunResult:
        """Run the study, or go on with it; in the order of the grid."""
        request = RunOptions(self.space, sampler="grid", results=self.results, cache=self._cache)
        return run_study(replace(request, **options), watch)

    def _prepared(self) -> Prepared:
        space = self.space.search_space
        payloads = self.space.workload.streams[0].payloads
        files = ModelFiles(self._artifact, payloads, (OutputTensor("logits", "FP32", (2,)),))
        gated = tuple(
            GatedArtifact(spec, "ab", 1.0, Accuracy(1.0, 1.0, 1.0, 0.0, 64), None, None)
            for spec in space.artifacts
        )
        return Prepared(space, dict.fromkeys(space.artifacts, files), gated, 1.0)

    @contextmanager
    def _evaluates(self, *_: object) -> Iterator[tuple[Evaluator, Prepared]]:
        yield self.evaluator, self._prepared()
