"""Where an engine is built: here, in a container, by trtexec; and what becomes of bad ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from optimizer.artifacts.engines import build_script
from optimizer.artifacts.engines.build_locations import (
    BuildLocation,
    ContainerBuildLocation,
    Folders,
    LocalBuildLocation,
    TrtexecBuildLocation,
)
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.releases import EngineFacts, tensorrt_image, triton_image
from optimizer.errors import BuildFailure
from optimizer.machine.docker_engine import ContainerTask
from tests.unit.engines import A10G, LOCAL, recipe
from tests.unit.fake_containers import FakeContainer, FakeContainers
from tests.unit.fake_tensorrt import install_beside
from tests.unit.test_engines_trtexec import LOG

IN_CONTAINER = replace(LOCAL, build_in="container", image=tensorrt_image())
BY_TRTEXEC = replace(LOCAL, build_in="trtexec", image=triton_image())
FACTS = EngineFacts("10.16.1.11", A10G.name, A10G.compute_capability)
GOOD_LOG = LOG.rsplit("\n", 2)[0].splitlines()
SCRIPT_SAYS = [
    "=== NVIDIA's banner ===",
    '{"progress": "Building Engine 1/2"}',
    '{"not ours": 1}',
    "{'no': json}",
    json.dumps({"facts": asdict(FACTS)}),
]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(*(tmp_path / name for name in ("graph", "plans", "timings")))
    for folder in (made.graph, made.plans, made.timings):
        folder.mkdir()
    (made.graph / "model.onnx").touch()
    return made


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that processes of this test import from first."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.mark.parametrize(("major", "version"), [(10, "10.16.1.11"), (11, "11.4.0.106")])
def test_here_in_a_process_of_its_own(
    folders: Folders, beside: Path, major: int, version: str
) -> None:
    install_beside(beside, major)
    told: list[str] = []
    facts = LocalBuildLocation(LOCAL).run(recipe(), folders, told.append)
    assert facts == replace(FACTS, tensorrt=version)
    assert (folders.plans / "model.plan").read_bytes() == b"plan of " + version.encode()
    assert (folders.timings / recipe().timing_cache).exists()
    assert told[0] == f"TensorRT {version} reads the graph"


def test_here_out_of_memory_is_recognised(folders: Folders, beside: Path) -> None:
    install_beside(beside, 10, no_plan=True, log_error="Cuda Runtime (out of memory)")
    with pytest.raises(BuildFailure, match=r"ended with 1: .*graph; Cuda Runtime \(out") as failed:
        LocalBuildLocation(LOCAL).run(recipe(), folders, print)
    assert failed.value.out_of_memory


def test_here_without_a_reason_the_last_lines_are_told(folders: Folders, beside: Path) -> None:
    (beside / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open')")
    with pytest.raises(BuildFailure, match="ImportError: libnvinfer") as failed:
        LocalBuildLocation(LOCAL).run(recipe(), folders, print)
    assert not failed.value.out_of_memory


def test_here_a_build_that_takes_too_long_is_ended(folders: Folders, beside: Path) -> None:
    install_beside(beside, 10, hangs_seconds=600.0)
    location = LocalBuildLocation(replace(LOCAL, timeout_seconds=1.5))
    with pytest.raises(BuildFailure, match=r"the engine was not built after 1\.5 s"):
        location.run(recipe(), folders, print)
    assert not list(folders.plans.iterdir())
    running = [p for p in Path("/proc").glob("[0-9]*/cmdline") if names(p, folders.plans)]
    assert not running


def names(command: Path, folder: Path) -> bool:
    try:
        return str(folder) in command.read_text()
    except OSError:
        return False


def test_in_a_container_the_script_is_mounted(folders: Folders) -> None:
    engine = FakeContainers(lambda _: FakeContainer(SCRIPT_SAYS, 0))
    told: list[str] = []
    location = ContainerBuildLocation(IN_CONTAINER, engine)
    assert location.run(recipe(), folders, told.append) == FACTS
    assert told == ["Building Engine 1/2"]
    [task] = engine.tasks
    assert task.image == "nvcr.io/nvidia/tensorrt:26.05-py3"
    inside = ("/graph", "/plans", "/timings")
    assert task.command == ("python3", "/build_script.py", recipe().to_json(), *inside)
    assert [(mount.source, mount.target, mount.read_only) for mount in task.mounts] == [
        (folders.graph, "/graph", True),
        (folders.plans, "/plans", False),
        (folders.timings, "/timings", False),
        (Path(build_script.__file__), "/build_script.py", True),
    ]
    assert (task.network, task.gpu_uuids) == ("none", (A10G.uuid,))
    assert location.identity() == {"image": "sha256:0a1b"}


def by_trtexec(banner: str, log: list[str], code: int = 0) -> FakeContainers:
    def run(task: ContainerTask) -> FakeContainer:
        asked = "--help" in task.command
        return FakeContainer([banner], 0) if asked else FakeContainer(log, code)

    return FakeContainers(run)


@pytest.mark.parametrize(
    ("banner", "version", "typed"),
    [("[TensorRT v101601] [b11]", "10.16.1.11", True), ("[TensorRT v110100]", "11.1.0", False)],
)
def test_by_trtexec_its_version_is_asked_for_first(
    folders: Folders, banner: str, version: str, typed: bool
) -> None:
    engine = by_trtexec(f"&&&& RUNNING TensorRT.trtexec {banner} # trtexec --help", GOOD_LOG)
    told: list[str] = []
    facts = TrtexecBuildLocation(BY_TRTEXEC, engine).run(recipe(), folders, told.append)
    assert facts == replace(FACTS, tensorrt=version)
    assert told == ["Local timing cache in use."]
    probe, build = engine.tasks
    assert probe.command[1:] == ("--help",)
    assert ("--stronglyTyped" in build.command) is typed
    assert build.image == "nvcr.io/nvidia/tritonserver:26.05-py3"
    assert not build.mounts[1].read_only


def failing(said: list[str], code: int | None) -> FakeContainers:
    return FakeContainers(lambda _: FakeContainer(said, code))


PROBE = "&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11]"
OTHER_GPU = [line.replace("A10G", "L4") for line in GOOD_LOG]


@pytest.mark.parametrize(
    ("location", "engine", "reason", "out_of_memory"),
    [
        (ContainerBuildLocation, failing(['{"failure": "no"}'], 1), "ended with 1: no$", False),
        (ContainerBuildLocation, failing(["a", "b"], 1), r"ended with 1: a \| b$", False),
        (ContainerBuildLocation, failing([], 0), "it printed nothing$", False),
        (ContainerBuildLocation, failing(["x"], 137), "was killed, as when memory", True),
        (ContainerBuildLocation, failing(["std::bad_alloc"], 134), "bad_alloc", True),
        (TrtexecBuildLocation, failing(["no such file"], 127), "no such file", False),
        (
            TrtexecBuildLocation,
            by_trtexec("[TensorRT v100900]", []),
            "10.12 or later, got 10.9.0",
            False,
        ),
        (TrtexecBuildLocation, by_trtexec(PROBE, LOG.splitlines(), 1), "out of memory", True),
        (TrtexecBuildLocation, by_trtexec(PROBE, OTHER_GPU), "trtexec took NVIDIA L4", False),
    ],
)
def test_containers_that_fail_are_build_failures_and_are_removed(
    folders: Folders,
    location: Callable[[EngineSettings, FakeContainers], BuildLocation],
    engine: FakeContainers,
    reason: str,
    out_of_memory: bool,
) -> None:
    with pytest.raises(BuildFailure, match=reason) as failed:
        location(IN_CONTAINER, engine).run(recipe(), folders, print)
    assert failed.value.out_of_memory is out_of_memory
    assert all(container.stopped.is_set() for container in engine.containers)


def test_a_container_that_takes_too_long_is_removed(folders: Folders) -> None:
    engine = failing(["still at it"], None)
    location = ContainerBuildLocation(replace(IN_CONTAINER, timeout_seconds=0.1), engine)
    with pytest.raises(BuildFailure, match=r"not built after 0\.1 s"):
        location.run(recipe(), folders, print)
    assert engine.containers[0].stopped.is_set()


def test_a_container_is_removed_when_the_wait_for_it_is_interrupted(folders: Folders) -> None:
    class Interrupted(FakeContainer):
        def wait(self, timeout_seconds: float) -> int | None:
            raise KeyboardInterrupt

    engine = FakeContainers(lambda _: Interrupted([], None))
    with pytest.raises(KeyboardInterrupt):
        ContainerBuildLocation(IN_CONTAINER, engine).run(recipe(), folders, print)
    assert engine.containers[0].stopped.is_set()
