"""Studies that can be exported, and bundles of them, without a server: their files are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.analysis.study_reading import read_study
from optimizer.artifacts.cache import ArtifactCache, CacheEntry
from optimizer.commands.export import ExportOptions, export_study
from optimizer.configuration.runtimes.spec import Precision
from optimizer.export.bundle.manifest import MANIFEST, Bundle, digests, read_bundle
from optimizer.export.bundle.repository import Provenance, write_model_repository
from optimizer.files.atomic import write_json
from optimizer.files.shipped import shipped
from optimizer.study.directory import StudyDirectory
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import OutputTensor
from tests.unit.whole_studies import WholeStudy

OUTPUT = OutputTensor("logits", "FP32", (2,))
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
MADE_BY = "triton-cost-optimizer 9.9.9"


class Exportable:
    """A study of two precisions that ended well, and the artefact cache that it was run with.

    Attributes:
        capacities: of the trials, by configuration, see `WholeStudy`.
    """

    def __init__(
        self,
        root: Path,
        capacities: Mapping[int, float] | None = None,
        confirmed: Mapping[int, tuple[float, ...]] | None = None,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.cache = ArtifactCache(root / "cache")
        study = WholeStudy(
            root / "results" / "one",
            capacities if capacities is not None else {0: 100.0, 2: 300.0},
            confirmed if confirmed is not None else {2: (280.0, 290.0)},
            sections or {},
        )
        self.directory = study.written()
        self._artifacts()

    def _artifacts(self) -> None:
        entries = {precision: self._entry(precision) for precision in PRECISIONS}
        rows = [
            {"artifact": f"bert/openvino/{precision}", "sha256": entry.sha256}
            for precision, entry in entries.items()
        ]
        write_json(self.directory.prepared, {"building_seconds": 1.0, "artifacts": rows})
        reading = read_study(self.directory.root.parent, "one")
        baseline = reading.trials[0].config
        payloads = reading.searched.workload.streams[0].payloads
        files = {"bert": ModelFiles(entries["fp32"].path, payloads, (OUTPUT,))}
        templates = shipped("model_repository_templates")
        write_model_repository(
            self.directory.baseline, templates, baseline, files, Provenance({}, {})
        )

    def _entry(self, precision: Precision) -> CacheEntry:
        def build(into: Path) -> None:
            (into / "model.xml").write_text(f"graph in {precision}")
            (into / "model.bin").write_bytes(b"weights " + precision.encode())

        return self.cache.get_or_build({"kind": "openvino", "precision": precision}, build)

    def request(self, target: Path, **options: Any) -> ExportOptions:
        return ExportOptions(
            study="one",
            results=self.directory.root.parent,
            cache=self.cache.root,
            target=target,
            examples=False,
            **options,
        )

    def export(self, target: Path, **options: Any) -> Bundle:
        export_study(self.request(target, **options), lambda _: None, MADE_BY)
        return read_bundle(target)


def signed(bundle: Path) -> Bundle:
    """The bundle, as if what lies in it now had been exported so."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "files": digests(bundle)}))
    return read_bundle(bundle)


def without_baseline(directory: StudyDirectory) -> None:
    """As it is before a study has come to its end."""
    (directory.baseline / "bert" / "config.pbtxt").unlink()
