"""TensorRT engines in bundles: shipped with what they are built from, and built anew.

No machine of ours has a GPU: TensorRT is a fake, and so is the GPU that is seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.artifacts.cache import ArtifactCache, CacheEntry, key_digest
from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    EngineProfile,
    InstanceGroup,
    ServingConfig,
)
from optimizer.export.bundle import rebuild_script
from optimizer.export.bundle.checks import check_files, rebuilt_engines
from optimizer.export.bundle.manifest import Bundle, LoadDescription, read_bundle, write_manifest
from optimizer.export.bundle.study_artifacts import StoredArtifact, StudyArtifacts
from optimizer.export.bundle.study_bundle import ExportSource, append_readme, write_study_bundle
from optimizer.files.atomic import write_json
from optimizer.files.shipped import shipped
from optimizer.workload.model_spec import AccuracyLimits
from tests.unit.engines import recipe
from tests.unit.exported import MADE_BY, Exportable
from tests.unit.fake_tensorrt import install_beside

pytestmark = pytest.mark.usefixtures("fast_disk")
SPEC = ArtifactSpec("bert", "tensorrt", "tensorrt", "fp16", EngineProfile(8, 32))
FACTS = EngineFacts("10.16.1.11", "NVIDIA A10G", (8, 6))
L4 = ("NVIDIA L4", (8, 9))
GRAPH_KEY = {"kind": "graph", "precision": "fp16"}


def write_graph(into: Path) -> None:
    (into / "model.onnx").write_bytes(b"graph")


def write_engine(into: Path) -> None:
    (into / "model.plan").write_bytes(b"plan of a while ago")
    (into / "plan.json").write_text(json.dumps(asdict(FACTS)))


class Engines:
    """A study whose engine lies in its artefact cache, with the graph that it was built from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = ArtifactCache(root / "cache")
        exportable = Exportable(root)
        self.graph = self.cache.get_or_build(GRAPH_KEY, write_graph)
        self.engine = self._engine()
        rows = [{"artifact": SPEC.label, "sha256": self.engine.sha256}]
        kept = {"building_seconds": 1.0, "artifacts": rows}
        write_json(exportable.directory.prepared, kept)
        self.study = read_study(exportable.directory.root.parent, "one")

    def _engine(self) -> CacheEntry:
        key = {
            "kind": "tensorrt",
            "precision": "fp16",
            "graph": key_digest(GRAPH_KEY),
            "recipe": asdict(recipe()),
        }
        return self.cache.get_or_build(key, write_engine)

    def found(self) -> StoredArtifact:
        return StudyArtifacts(self.study, self.cache, self.root / "staging").find(SPEC)

    def bundle(self, root: Path) -> Bundle:
        """The study's best as if it were this engine on a GPU."""
        searched = self.study.searched
        best = self.study.decision(searched.price, searched.demand).ranking[0]
        group = InstanceGroup("KIND_GPU", 1, (0,))
        model = replace(best.candidate.config.models[0], artifact=SPEC, groups=(group,))
        candidate = replace(best.candidate, config=ServingConfig((model,)))
        exported = Exportable(self.root / "other").export(self.root / "of openvino")
        winner = ExportSource(
            study=self.study,
            finding=replace(best, candidate=candidate),
            artifacts={"bert": self.found()},
            tolerances={"bert": AccuracyLimits(0.99, 0.99)},
            versions=replace(exported.manifest.versions, gpus=("NVIDIA A10G",), driver="580"),
            cards={},
            made_by=MADE_BY,
        )
        manifest = write_study_bundle(root, shipped("model_repository_templates"), winner)
        append_readme(root, manifest)
        load = LoadDescription(searched.workload, exported.load.measurement)
        return write_manifest(root, manifest, load)


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


Rebuild = Callable[[Path], int]


@pytest.fixture
def rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rebuild:
    """The script of a bundle, where TensorRT 11 and an L4 are."""
    packages = tmp_path / "packages"
    packages.mkdir()
    install_beside(packages, 11)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setattr(rebuild_script, "visible_gpu", lambda _: L4)
    return rebuild_script.main


def test_an_engine_comes_with_its_graph_recipe_and_scripts(
    engines: Engines, tmp_path: Path
) -> None:
    bundle = engines.bundle(tmp_path / "bundle")
    [model] = bundle.manifest.models
    assert (model.engine, model.graph, model.rebuilt) == (FACTS, "bert/graph", False)
    assert set(bundle.manifest.files) == {
        "README.md", "requirements.txt", "load.json", "bert/config.pbtxt", "bert/1/model.plan",
        "bert/1/plan.json", "bert/graph/model.onnx", "bert/recipe.json", "build_engine.py",
        "rebuild_engines.py",
    }  # fmt: skip
    assert bundle.manifest.missing == ()
    readme = (bundle.root / "README.md").read_text()
    assert "python3 rebuild_engines.py" in readme


def test_without_the_graph_the_bundle_says_so(engines: Engines, tmp_path: Path) -> None:
    shutil.rmtree(engines.graph.path.parent)
    bundle = engines.bundle(tmp_path / "bundle")
    assert bundle.manifest.models[0].graph is None
    assert not (bundle.root / "rebuild_engines.py").exists()
    [missing] = bundle.manifest.missing
    assert missing.startswith("bert/graph: the artefact cache no longer contains the graph")
    assert "rebuild_engines.py" not in (bundle.root / "README.md").read_text()


def test_an_engine_is_built_anew_for_what_is_here(
    engines: Engines, tmp_path: Path, rebuild: Rebuild, capsys: pytest.CaptureFixture[str]
) -> None:
    root = engines.bundle(tmp_path / "bundle").root
    assert rebuild(root) == 0
    assert capsys.readouterr().out == "bert: built with TensorRT 11.4.0.106 for NVIDIA L4\n"
    assert (root / "bert/1/model.plan").read_bytes() == b"plan of 11.4.0.106"
    bundle = read_bundle(root)
    assert bundle.manifest.models[0].engine == EngineFacts("11.4.0.106", *L4)
    assert check_files(bundle).outcome == "pass"
    assert rebuilt_engines(bundle.manifest) == [
        "bert: its engine was rebuilt with TensorRT 11.4.0.106 for NVIDIA L4"
    ]
    assert not list(root.rglob(".*"))


def test_a_build_that_fails_leaves_the_bundle_as_it_was(
    engines: Engines, tmp_path: Path, rebuild: Rebuild, capsys: pytest.CaptureFixture[str]
) -> None:
    root = engines.bundle(tmp_path / "bundle").root
    install_beside(tmp_path / "packages", 11, no_plan=True)
    assert rebuild(root) == 1
    assert "error: bert: TensorRT found no engine for this graph" in capsys.readouterr().err
    assert check_files(read_bundle(root)).outcome == "pass"
    assert (root / "bert/1/model.plan").read_bytes() == b"plan of a while ago"


def test_the_script_needs_nothing_but_the_bundle_and_says_what_is_missing(
    engines: Engines, tmp_path: Path
) -> None:
    root = engines.bundle(tmp_path / "bundle").root
    ended = subprocess.run(
        [sys.executable, "-S", "-E", "rebuild_engines.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={"PATH": os.environ["PATH"]},
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no CU")
    assert check_files(read_bundle(root)).outcome == "pass"
