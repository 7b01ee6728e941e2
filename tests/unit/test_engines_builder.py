"""Engines through the build process: real graphs and processes, and a fake `tensorrt`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner

from optimizer.artifacts import build_process as build_process_module
from optimizer.artifacts.build_context import BuildContext
from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache, CacheEntry
from optimizer.artifacts.datasets import row_digest
from optimizer.artifacts.disk import bytes_needed, require_room
from optimizer.artifacts.engines.builder import TensorRtBuilder, read_facts
from optimizer.cli import commands
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.model_space import Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, EngineProfile
from optimizer.errors import BuildFailure, RequirementError
from optimizer.search.prepare import PreparePhase
from optimizer.search.prepared import Prepared
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, StepStarted
from optimizer.triton.session import ServingSession
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors
from tests.unit.engines import A10G, LOCAL, FakeLocation
from tests.unit.fake_session import FakeSession
from tests.unit.fake_tensorrt import install_beside
from tests.unit.test_build_process import building_pid, running
from tests.unit.test_gpu_spaces import ONE_POINT
from tests.unit.tiny_bert import LONGEST, MODEL, artifact

SPEC = ArtifactSpec(MODEL.name, "tensorrt", "tensorrt", "fp16", EngineProfile(2, 4))
FACTS = EngineFacts("10.16.1.11", A10G.name, A10G.compute_capability)


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that this and its child processes import from first, with a `tensorrt` in it."""
    folder = tmp_path / "packages"
    told = folder / "tensorrt-10.16.1.11.dist-info" / "METADATA"
    told.parent.mkdir(parents=True)
    told.write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.16.1.11\n")
    monkeypatch.syspath_prepend(str(folder))
    install_beside(folder, 10)
    return folder


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the model's graphs."""
    root = tmp_path_factory.mktemp("engines") / "cache"
    with BuildProcess(ArtifactCache(root), root.parent / "log", threads=2) as shop:
        shop.build(artifact("onnxruntime", "fp16"), MODEL)
    return root


@pytest.mark.usefixtures("beside")
def test_a_plan_is_built_once_and_says_what_it_is(cache_root: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with BuildProcess(
        ArtifactCache(cache_root), tmp_path / "log", threads=1, engines=LOCAL
    ) as shop:
        made = shop.build(SPEC, MODEL, told.append)
        again = shop.build(SPEC, MODEL)
        larger = shop.build(replace(SPEC, profile=EngineProfile(2, 8)), MODEL)
    assert told[0] == "TensorRT 10.16.1.11 reads the graph"
    assert again == replace(made, cached=True)
    assert made.builder == "tensorrt 10.16.1.11"
    assert made.engine == read_facts(made.path) == FACTS
    assert {path.name for path in made.path.iterdir()} == {"model.plan", "plan.json"}
    assert larger.path != made.path
    [timings] = ArtifactCache(cache_root).timings.iterdir()
    assert timings.name == "10.16.1.11-NVIDIA-A10G.cache"
    assert "tensorrt fp16 batch 2..4" in {
        entry.what for entry in ArtifactCache(cache_root).entries()
    }


@pytest.mark.usefixtures("beside")
def test_without_a_gpu_there_is_no_engine(cache_root: Path, tmp_path: Path) -> None:
    with (
        BuildProcess(ArtifactCache(cache_root), tmp_path / "log", threads=1) as shop,
        pytest.raises(BuildFailure, match="on and for a GPU, and there is none"),
    ):
        shop.build(SPEC, MODEL)


def digests(batch: Tensors) -> list[str]:
    """Each row of a batch, as a request by itself."""
    rows = len(batch["input_ids"])
    return [row_digest({key: v[n : n + 1] for key, v in batch.items()}) for n in range(rows)]


def prepared(folder: Path, cache_root: Path, gpu: Gpu = A10G) -> tuple[Prepared, list[str]]:
    """What the prepare phase of a study leaves, and which builds it told of."""
    precisions: Sequence[Value] = ("fp32", "fp16", "bf16", "int8")
    parameters = parameters_in_order(MODEL.name, {**ONE_POINT, "precision": precisions})
    space = SearchSpace(parameters, Hardware(4, 16_000, (gpu,)), Limits())
    events: list[Event] = []
    with BuildProcess(
        ArtifactCache(cache_root), folder / "log", threads=1, engines=replace(LOCAL, gpu=gpu)
    ) as shop:
        own = shop.prepare_model(MODEL)
        reference = own.references[0].outputs["logits"]
        answers = {row_digest(row): reference[n] for n, row in enumerate(own.evaluation)}
        fake = FakeSession(lambda batch: np.stack([answers[row] for row in digests(batch)]))
        session = cast(ServingSession, fake)
        phase = PreparePhase(StudyDirectory(folder / "study"), shop, session, events.append)
        found = phase.run([MODEL], space)
    files = [own.artifact / "model.plan" for each in fake.files for own in each.values()]
    assert all(file.is_file() for file in files)
    told = [event.doing for event in events if isinstance(event, StepStarted)]
    return found, [text for text in told if text.endswith("reads the graph")]


@pytest.mark.slow
@pytest.mark.usefixtures("beside")
def test_a_second_search_builds_no_engine(cache_root: Path, tmp_path: Path) -> None:
    first, builds = prepared(tmp_path / "first", cache_root)
    assert len(builds) == 4
    assert builds[0].startswith(f"building {MODEL.name}/tensorrt/fp32/batch 8..8: TensorRT 10.16")
    assert first.building_seconds > 0
    again, builds = prepared(tmp_path / "again", cache_root)
    assert (again.building_seconds, builds) == (0, [])
    assert {each.spec: each.sha256 for each in again.gated} == {
        each.spec: each.sha256 for each in first.gated
    }
    assert {each.dropped for each in again.gated} == {None}


@pytest.mark.usefixtures("beside")
def test_what_a_gpu_lacks_is_left_out_before_any_build(cache_root: Path, tmp_path: Path) -> None:
    found, builds = prepared(tmp_path, cache_root, Gpu("GPU-0", "Tesla T4", (7, 5), 15360))
    assert len(builds) == 3
    dropped = {each.spec.precision: each.dropped for each in found.gated if each.dropped}
    assert dropped == {"bf16": "bf16 needs compute capability 8.0, Tesla T4 has 7.5"}
    assert {spec.precision for spec in found.files} == {"fp32", "fp16", "int8"}


def test_a_failed_build_leaves_the_build_process_running(
    cache_root: Path, tmp_path: Path, beside: Path
) -> None:
    install_beside(beside, 10, no_plan=True, log_error="Cuda Runtime (out of memory)")
    spec = replace(SPEC, profile=EngineProfile(1, 16))
    with BuildProcess(
        ArtifactCache(cache_root), tmp_path / "log", threads=1, engines=LOCAL
    ) as shop:
        for _ in range(2):
            with pytest.raises(BuildFailure, match="found no engine for this graph") as failed:
                shop.build(spec, MODEL)
            assert failed.value.out_of_memory
        assert shop.build(artifact("onnxruntime", "fp16"), MODEL).cached


def script_pid(folder: Path) -> int:
    """The process that runs the build script on what lies in `folder`, awaited."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = command.read_text().split("\0")
            except OSError:
                continue
            if "build_script.py" in " ".join(words) and any(str(folder) in w for w in words):
                return int(command.parent.name)
        time.sleep(0.01)
    raise AssertionError("no script ran")


def test_a_build_dies_with_the_build_process(
    cache_root: Path, tmp_path: Path, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever it has left in containers is looked for."""
    install_beside(beside, 10, hangs_seconds=600.0)
    reaped: list[EngineSettings | None] = []
    monkeypatch.setattr(build_process_module, "reap_builds", reaped.append)
    seen: list[int] = []

    def kill() -> None:
        seen.append(script_pid(cache_root))
        os.kill(building_pid(cache_root), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with BuildProcess(
        ArtifactCache(cache_root), tmp_path / "log", threads=1, engines=LOCAL
    ) as shop:
        with pytest.raises(BuildFailure, match="killed by SIGKILL"):
            shop.build(replace(SPEC, profile=EngineProfile(3, 3)), MODEL)
        killer.join()
        assert reaped == [LOCAL, LOCAL]  # before its child was started, and after it was killed
    assert reaped == [LOCAL, LOCAL]  # it had nothing under way when it was closed
    deadline = time.monotonic() + 30
    while running(seen[0]):
        assert time.monotonic() < deadline, "the build outlived the build process"
        time.sleep(0.05)


def key(
    cache_root: Path,
    settings: EngineSettings = LOCAL,
    model: ModelSpec = MODEL,
    spec: ArtifactSpec = SPEC,
    **identity: str,
) -> str:
    location = FakeLocation(identity or {"tensorrt": "10.16.1.11"})
    context = BuildContext(model, ArtifactCache(cache_root), settings)
    return json.dumps(
        TensorRtBuilder({"local": lambda _: location}).key(spec, context), sort_keys=True
    )


def test_whatever_decides_an_engine_is_in_its_key(cache_root: Path) -> None:
    other_gpu = replace(LOCAL, gpu=replace(A10G, name="NVIDIA A10"))
    more_capable = replace(LOCAL, gpu=replace(A10G, compute_capability=(8, 9)))
    lengths = replace(MODEL.payloads.lengths, lengths=(5, LONGEST))
    shorter = replace(MODEL, payloads=replace(MODEL.payloads, lengths=lengths))
    keys = [
        key(cache_root),
        key(cache_root, tensorrt="11.1.0.106"),
        key(cache_root, image="sha256:0a1b"),
        key(cache_root, other_gpu),
        key(cache_root, more_capable),
        key(cache_root, replace(LOCAL, workspace_mib=1024)),
        key(cache_root, replace(LOCAL, optimization_level=5)),
        key(cache_root, model=shorter),
        key(cache_root, spec=replace(SPEC, precision="fp32")),
        key(cache_root, spec=replace(SPEC, profile=EngineProfile(1, 4))),
    ]
    assert len(set(keys)) == len(keys)


def test_what_does_not_is_not(cache_root: Path) -> None:
    other_card = replace(A10G, uuid="GPU-other", memory_mib=1)
    settings = replace(LOCAL, gpu=other_card, timeout_seconds=9.0)
    assert key(cache_root, settings) == key(cache_root)


def test_a_build_that_left_no_plan_is_no_engine(cache_root: Path) -> None:
    context = BuildContext(MODEL, ArtifactCache(cache_root), LOCAL)
    location = FakeLocation({"tensorrt": "1"}, writes=False)
    with pytest.raises(BuildFailure, match=r"wrote no model\.plan"):
        TensorRtBuilder({"local": lambda _: location}).entry(SPEC, context)


def test_an_empty_plan_is_no_engine(cache_root: Path) -> None:
    context = BuildContext(MODEL, ArtifactCache(cache_root), LOCAL)
    location = FakeLocation({"tensorrt": "1"}, empty=True)
    with pytest.raises(BuildFailure, match=r"wrote an empty model\.plan"):
        TensorRtBuilder({"local": lambda _: location}).entry(SPEC, context)


def test_what_was_timed_is_kept_whole_whoever_dies(cache_root: Path) -> None:
    context = BuildContext(MODEL, ArtifactCache(cache_root), LOCAL)

    def build(batch: int, **behaviour: bool) -> CacheEntry:
        location = FakeLocation({"tensorrt": "9"}, **behaviour)
        spec = replace(SPEC, profile=EngineProfile(batch, batch))
        return TensorRtBuilder({"local": lambda _: location}).entry(spec, context)

    first = build(1)
    with pytest.raises(BuildFailure, match="killed"):
        build(2, dies=True)
    kept = context.cache.timings / "9-NVIDIA-A10G.cache"
    assert kept.read_text() == "a kernel "
    build(2)
    assert kept.read_text() == "a kernel a kernel "
    assert {path.name for path in first.path.iterdir()} == {"model.plan", "plan.json"}
    assert not [*context.cache.timings.glob("*.lock")]


def test_the_command_lists_engines_and_prunes_timings(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    engine = {"kind": "tensorrt", "precision": "int8", "batch": [8, 32]}
    cache.get_or_build(engine, lambda into: (into / "model.plan").touch())
    cache.timings.mkdir()
    for name, used_at in (("old.cache", 0), ("new.cache", time.time())):
        (cache.timings / name).write_bytes(bytes(2**20))
        os.utime(cache.timings / name, (used_at, used_at))

    def said(*arguments: str) -> str:
        command = ["cache", "--cache", str(tmp_path), *arguments]
        ended = CliRunner(env={"COLUMNS": "120"}).invoke(commands, command)
        assert ended.exit_code == 0, ended.output
        return " ".join(ended.output.replace("│", " ").split())

    assert "tensorrt int8 batch 8..32" in said()
    assert said("--prune", "1h").startswith("removed 1 entry, 1.0 MiB")
    assert [path.name for path in cache.timings.iterdir()] == ["new.cache"]
    assert "removed 0 entries" in said("--prune", "1h")


def specs(*precisions: Any) -> list[ArtifactSpec]:
    return [replace(SPEC, precision=precision) for precision in precisions]


def test_room_grows_with_every_engine_and_is_none_where_nothing_is_built() -> None:
    gib = 2**30
    assert bytes_needed(gib, []) == 0
    one = bytes_needed(gib, specs("fp32"))
    assert 4 * gib < one < 6 * gib
    assert bytes_needed(gib, specs("fp32", "fp16")) > one
    two_profiles = [*specs("fp32"), replace(specs("fp32")[0], profile=EngineProfile(1, 64))]
    assert bytes_needed(gib, two_profiles) - one == round(1.25 * gib)
    assert bytes_needed(2 * gib, specs("fp32")) > 1.9 * one


def test_too_little_room_names_the_folder_and_both_figures(tmp_path: Path) -> None:
    require_room(tmp_path, 1, specs("fp32"))
    with pytest.raises(RequirementError, match=rf"{tmp_path}: .* about \d+ MiB, \d+ MiB are free"):
        require_room(tmp_path, 2**60, specs("fp32"))


@pytest.mark.usefixtures("beside")
def test_what_is_there_already_needs_no_room(
    cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is full."""
    full = tmp_path / "full"
    full.mkdir()
    (full / "sitecustomize.py").write_text(
        "import collections, shutil\n"
        "shutil.disk_usage = lambda _: collections.namedtuple('Usage', 'free')(0)\n"
    )
    missing = replace(SPEC, profile=EngineProfile(5, 5))
    unknown = replace(SPEC, profile=None)
    with BuildProcess(
        ArtifactCache(cache_root), tmp_path / "log", threads=1, engines=LOCAL
    ) as shop:
        shop.build(SPEC, MODEL)
    monkeypatch.syspath_prepend(str(full))
    with BuildProcess(
        ArtifactCache(cache_root), tmp_path / "log", threads=1, engines=LOCAL
    ) as shop:
        shop.require_room([SPEC, artifact("onnxruntime", "fp16"), unknown], MODEL, 1)
        with pytest.raises(RequirementError, match="0 MiB are free"):
            shop.require_room([SPEC, missing], MODEL, 1)
