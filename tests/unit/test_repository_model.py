"""The files of a model of a repository, copied as they are into the artefact cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.build_jobs import build_artifact
from optimizer.artifacts.builders import BUILDERS
from optimizer.artifacts.cache import ArtifactCache
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure
from optimizer.workload.model_spec import RepositorySource
from tests.unit.tiny_bert import MODEL

SPEC = ArtifactSpec(MODEL.name, "repository", "repository", "as_deployed")
FILES = {"config.pbtxt": b"name: 'm'\r\n", "1/model.py": b"pass\n", "3/deep/er.bin": b"\0\xff"}


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    for name, content in FILES.items():
        path = tmp_path / "models" / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    model = replace(MODEL, source=RepositorySource(tmp_path / "models", "m"))
    return BuildContext(model, ArtifactCache(tmp_path / "cache"))


def copied(context: BuildContext) -> dict[str, bytes]:
    root = BUILDERS["repository"].entry(SPEC, context).path
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_file_is_copied_once_and_compiled_code_is_left_out(context: BuildContext) -> None:
    source = context.model.source
    assert isinstance(source, RepositorySource)
    compiled = source.folder / "1" / "__pycache__" / "model.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"compiled")
    assert copied(context) == FILES
    assert not BUILDERS["repository"].entry(SPEC, context).built


def test_a_changed_file_is_another_artefact(context: BuildContext) -> None:
    source = context.model.source
    assert isinstance(source, RepositorySource)
    before = build_artifact(SPEC, context.model, context.cache)
    (source.folder / "1" / "model.py").write_bytes(b"changed\n")
    after = build_artifact(SPEC, context.model, context.cache)
    assert before.sha256 != after.sha256
    assert (before.path / "1" / "model.py").read_bytes() == b"pass\n", "a study keeps its own"


def test_a_completed_configuration_replaces_the_files(context: BuildContext) -> None:
    source = context.model.source
    assert isinstance(source, RepositorySource)
    for completed in ("max_batch_size: 4\r\n", "max_batch_size: 8\n"):
        texts = ((source.model, completed), ("other", "max_batch_size: 2\n"))
        model = replace(context.model, source=replace(source, completions=texts))
        files = copied(replace(context, model=model))
        assert files == {**FILES, "config.pbtxt": completed.encode()}
    assert copied(context) == FILES, "another artefact"
    assert (source.folder / "config.pbtxt").read_bytes() == FILES["config.pbtxt"]


def test_no_graph_can_be_made_of_it(context: BuildContext) -> None:
    spec = ArtifactSpec(MODEL.name, "onnxruntime", "python", "fp32")
    with pytest.raises(BuildFailure, match="graphs cannot be made"):
        build_artifact(spec, context.model, context.cache)
