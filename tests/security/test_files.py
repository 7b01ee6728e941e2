"""Files and folders: nothing is read or removed elsewhere, and nothing of another user trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimizer.artifacts.cache import ArtifactCache, key_digest
from optimizer.artifacts.onnx_model import OnnxModel
from optimizer.artifacts.shared_cache import SharedCache
from optimizer.cluster.worker_folder import worker_folder
from optimizer.commands.run_context import artifact_cache
from optimizer.errors import StorageError, UsageError
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import is_safe_name
from optimizer.space_file.section import ModelName
from optimizer.workload.model_spec import OnnxSource
from tests.unit.test_artifacts_onnx import model, write_graph

KEY = {"kind": "test"}

GiveAway = Callable[[Path], None]


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> GiveAway:
    """Makes a file that of another user."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, 12345, -1)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)

    return give


def write_one(into: Path) -> None:
    (into / "a").write_text("one")


@pytest.mark.parametrize("part", [".", key_digest(KEY)])
def test_a_cache_of_another_user_is_not_used(
    part: str, tmp_path: Path, give_away: GiveAway
) -> None:
    root = tmp_path / "cache"
    ArtifactCache(root).get_or_build(KEY, write_one)
    artifact_cache(root)
    give_away(root / part)
    with pytest.raises(UsageError, match=r"must belong to you or to root, and belongs to user"):
        artifact_cache(root)


def test_a_cache_that_everybody_may_write_to_is_not_used(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    ArtifactCache(root).get_or_build(KEY, write_one)
    root.chmod(0o1777)
    with pytest.raises(UsageError, match=r"must not be writable for everybody, .* mode 1777"):
        artifact_cache(root)


def test_a_new_cache_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ArtifactCache(tmp_path / "cache").get_or_build(KEY, write_one)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    artifact_cache(tmp_path / "cache")


def test_a_shared_cache_reads_and_removes_nothing_elsewhere(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    listed = tmp_path / "shared" / "entries" / f"{key_digest(KEY)}.json"
    listed.parent.mkdir(parents=True)
    (tmp_path / "shared" / "files").mkdir()
    manifest = {"key": KEY, "files": {"a": "../../precious"}, "build_seconds": 1}
    listed.write_text(json.dumps(manifest))
    cache = ArtifactCache(tmp_path / "cache", SharedCache(f"file://{tmp_path}/shared"))
    assert cache.get_or_build(KEY, write_one).built
    assert precious.read_text() == "keep me"


def test_workers_trust_no_folder_of_another_user(tmp_path: Path, give_away: GiveAway) -> None:
    root = tmp_path / "triton-cost-optimizer-0" / "workers"
    root.parent.mkdir()
    give_away(root.parent)
    with (
        pytest.raises(StorageError, match="must be a folder that only you can write to"),
        worker_folder(root, "study", "a worker"),
    ):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_results_have_the_mode_that_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "study" / "record.json", "{}")
    finally:
        os.umask(before)
    status = (tmp_path / "study" / "record.json").stat()
    assert stat.S_IMODE(status.st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "study").stat().st_mode) == 0o777 & ~mask


def graph_with_hidden_data(path: Path, location: str) -> Path:
    """Write a graph in which the attribute of a node, no weight, has its data in another file."""
    write_graph(path)
    loaded = onnx.load(path)
    hidden = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value=location)
    node = helper.make_node("ConstantOfShape", ["shape"], ["filled"], value=hidden)
    shape = numpy_helper.from_array(np.array([1], np.int64), "shape")
    loaded.graph.initializer.append(shape)
    loaded.graph.node.insert(0, node)
    path.write_bytes(loaded.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_external_data_of_any_tensor_lies_beside_its_onnx_file(
    location: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("a key")
    (folder / "link").symlink_to(tmp_path / "secret")
    path = graph_with_hidden_data(folder / "m.onnx", location)
    with pytest.raises(UsageError, match="external data must lie beside the file"):
        OnnxModel(model(path), OnnxSource(path)).fingerprint()


@pytest.mark.parametrize("name", ["-model", "../model", "/model", ".model", "a b", "a;b", "$(a)"])
def test_no_name_of_a_model_is_an_option_a_path_or_shell(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    assert is_safe_name(name) is False
    with pytest.raises(ValidationError):
        TypeAdapter(ModelName).validate_python(name)
