"""What every `ArtifactBuilder` promises; TensorRT's builds with a fake TensorRT."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.builders import BUILDERS, ArtifactBuilder
from optimizer.artifacts.cache import ArtifactCache, CacheEntry, key_digest
from optimizer.artifacts.engines.builder import TensorRtBuilder
from optimizer.artifacts.model_source import ModelSource
from optimizer.configuration.runtimes import (
    PRECISIONS_OF,
    onnxruntime_session,
    openvino_session,
    pytorch_session,
)
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.errors import BuildFailure
from tests.unit.engines import LOCAL, FakeLocation
from tests.unit.tiny_bert import LONGEST, MODEL, PAIRS, artifact, request

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch and its exporter
    pytest.mark.timeout(300),
]

MIN_COSINE: Mapping[Precision, float] = {
    "fp32": 0.999999,
    "fp16": 0.9999,
    "bf16": 0.999,
    "int8": 0.98,
    "int8_dynamic": 0.98,
}
SESSIONS = {
    "onnxruntime": onnxruntime_session.open_session,
    "openvino": openvino_session.open_session,
    "pytorch": pytorch_session.open_session,
}
PROFILE = EngineProfile(2, 4)
ENGINES = [
    ArtifactSpec(MODEL.name, "tensorrt", "tensorrt", precision, PROFILE)
    for precision in PRECISIONS_OF["KIND_GPU"]["tensorrt"]
]
SPECS = [*(artifact(*pair) for pair in PAIRS), *ENGINES]


def builder_of(spec: ArtifactSpec, *, fails: bool = False) -> ArtifactBuilder:
    if spec.runtime != "tensorrt":
        return BUILDERS[spec.runtime]
    location = FakeLocation({"tensorrt": "10.16.1.11"}, dies=fails)
    return TensorRtBuilder({"local": lambda _: location})


@dataclass(frozen=True)
class Built:
    spec: ArtifactSpec
    context: BuildContext
    entry: CacheEntry

    @property
    def builder(self) -> ArtifactBuilder:
        return builder_of(self.spec)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> BuildContext:
    return BuildContext(MODEL, ArtifactCache(tmp_path_factory.mktemp("cache")), LOCAL)


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.runtime} {spec.precision}")
def built(request: pytest.FixtureRequest, context: BuildContext) -> Built:
    spec = request.param
    return Built(spec, context, builder_of(spec).entry(spec, context))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.runtime} {spec.precision}")
def test_the_key_is_json_and_builds_nothing(tmp_path: Path, spec: ArtifactSpec) -> None:
    empty = BuildContext(MODEL, ArtifactCache(tmp_path / "cache"), LOCAL)
    digests = {key_digest(builder_of(spec).key(spec, empty)) for _ in range(2)}
    assert len(digests) == 1, "the digest of its JSON is always the same"
    assert not (tmp_path / "cache").exists()


def test_the_key_names_the_entry(built: Built) -> None:
    assert built.context.cache.holds(built.builder.key(built.spec, built.context))


def test_files_are_built_once(built: Built) -> None:
    again = built.builder.entry(built.spec, built.context)
    assert again == replace(built.entry, built=False)
    files = [path for path in built.entry.path.iterdir() if path.is_file()]
    assert files == [*built.entry.path.iterdir()]
    assert all(path.stat().st_size > 0 for path in files)


def test_the_maker_is_a_library_with_its_version(built: Built) -> None:
    library, version = built.builder.maker(built.entry).split()
    assert library in {"onnxruntime", "openvino", "torch", "tensorrt"}
    assert version[0].isdigit()


def test_int8_tells_its_share_of_the_arithmetic(built: Built) -> None:
    share = built.entry.facts.get("int8_share")
    assert (share is not None) == built.spec.precision.startswith("int8")
    assert share is None or 0.8 < share <= 1
    assert (share == 1) == (built.spec.precision == "int8_attention"), "all of BERT is products"


def test_files_name_no_path_of_this_machine_and_hold_no_pickle(built: Built) -> None:
    for file in built.entry.path.iterdir():
        parts = {file.name: file.read_bytes()}
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
        for name, content in parts.items():
            assert b"site-packages" not in content, name
            assert b".py" not in content, name
            assert not content.startswith((b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")), name


def test_served_outputs_are_those_of_the_model(built: Built) -> None:
    if built.spec.runtime == "tensorrt":
        pytest.skip("the plans of a fake TensorRT cannot be executed")
    precision = built.spec.precision
    folder = str(built.entry.path)
    run = SESSIONS[built.spec.runtime](folder, ["logits"], precision, 1, None)
    graph = str(built.context.graphs.entry("fp32").path)
    reference = onnxruntime_session.open_session(graph, ["logits"], "fp32", 1, None)
    for batch, length in [(1, 7), (1, LONGEST), (5, 7), (5, LONGEST)]:
        [outputs] = run(request(batch, length))
        [expected] = reference(request(batch, length))
        assert outputs.dtype == np.float32
        accuracy = compare(expected, outputs)
        # int8 leaves the rest to BF16 where the processor has it.
        assert accuracy.min_cosine >= MIN_COSINE[precision], (batch, length, accuracy)


@pytest.mark.parametrize(
    "spec", [*(artifact(r, "fp32") for r in SESSIONS), ENGINES[0]], ids=lambda spec: spec.runtime
)
def test_a_build_that_fails_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ArtifactSpec
) -> None:
    context = BuildContext(MODEL, ArtifactCache(tmp_path), LOCAL)
    if spec.runtime != "tensorrt":

        def fail(*_: object) -> None:
            raise BuildFailure("killed")

        source: type[ModelSource] = type(context.graphs.source)
        monkeypatch.setattr(source, "export_onnx", fail)
        monkeypatch.setattr(source, "export_torch", fail)
    builder = builder_of(spec, fails=True)
    with pytest.raises(BuildFailure, match="killed"):
        builder.entry(spec, context)
    assert not context.cache.holds(builder.key(spec, context))
    assert not [*tmp_path.glob(".building-*")]
