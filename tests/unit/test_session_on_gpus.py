"""When a server on a GPU is restarted, and what its models are seen to take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from optimizer.configuration.releases import EngineFacts
from optimizer.configuration.serving_config import ModelServing, ServerOptions, ServingConfig
from optimizer.errors import ModelLoadFailure
from optimizer.files.shipped import shipped
from optimizer.machine.slots import Slot
from optimizer.measurement.model_memory import ModelMemory
from optimizer.triton import session as session_module
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles, ServingSession
from tests.unit.fake_server import HOST_MIB, FakeGpuServer
from tests.unit.test_gpu_layouts import LAYOUTS
from tests.unit.test_model_config import OUTPUT, PAYLOADS

CONFIG = LAYOUTS["same_on_every_gpu"]
Open = Callable[[FakeGpuServer], ServingSession]


@pytest.fixture
def open_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(session_module, "_MEMORY_RELEASE_SECONDS", 0.1)

    def opened(server: FakeGpuServer) -> ServingSession:
        monkeypatch.setattr(session_module, "memory_in_use_mib", server.memory_in_use_mib)
        repository = ModelRepository(tmp_path / "models", shipped("model_repository_templates"))
        return ServingSession(server, repository, Slot((0,), (0,), ("GPU-0",)))

    return opened


def serve(session: ServingSession, folder: Path, config: ServingConfig = CONFIG) -> None:
    artifact = folder / "artifact"
    artifact.mkdir(exist_ok=True)
    files = {model.name: ModelFiles(artifact, PAYLOADS, (OUTPUT,)) for model in config.models}
    session.serve(config, files)


def test_what_models_take_is_told_from_an_empty_server(tmp_path: Path, open_session: Open) -> None:
    session = open_session(FakeGpuServer(instance_mib=900.0))
    assert session.memory_of_models() == ModelMemory(), "nothing runs yet"
    serve(session, tmp_path)
    assert session.memory_of_models() == ModelMemory(900.0, HOST_MIB)
    session.retire(wait=True)
    assert session.memory_of_models() == ModelMemory(0.0, 0.0)


def test_a_server_that_gives_memory_back_is_kept(tmp_path: Path, open_session: Open) -> None:
    server = FakeGpuServer(instance_mib=900.0, kept_mib=100.0)
    session = open_session(server)
    for _ in range(4):
        serve(session, tmp_path)
        session.retire()
    assert len(server.starts) == 1


def test_one_that_keeps_it_is_started_anew(tmp_path: Path, open_session: Open) -> None:
    server = FakeGpuServer(instance_mib=900.0, kept_mib=600.0)
    session = open_session(server)
    for _ in range(3):
        serve(session, tmp_path)
        session.retire()
    assert len(server.starts) == 3


def test_options_of_the_server_start_it_anew(tmp_path: Path, open_session: Open) -> None:
    server = FakeGpuServer(instance_mib=10.0)
    session = open_session(server)
    plain = ServingConfig((ModelServing("bert", CONFIG.models[0].artifact),))
    for config in (plain, CONFIG, CONFIG, plain):
        serve(session, tmp_path, config)
        session.retire()
    assert server.starts == [ServerOptions(), CONFIG.server, ServerOptions()]


def test_an_engine_is_compared_with_the_tensorrt_of_the_servers_image(
    tmp_path: Path, open_session: Open
) -> None:
    server = FakeGpuServer(instance_mib=10.0)
    server.tensorrt = "10.13.0.35"  # Triton 2.69.0 was released with 10.16.1.11
    model = CONFIG.models[0]
    for built_with, fits in (("10.13.0.35", True), ("10.16.1.11", False)):
        engine = EngineFacts(built_with, "Tesla T4", (7, 5))
        files = {model.name: ModelFiles(tmp_path, PAYLOADS, (OUTPUT,), engine)}
        with nullcontext() if fits else pytest.raises(ModelLoadFailure, match=built_with):
            open_session(server).serve(CONFIG, files)


def test_a_large_plan_may_take_longer_to_load_from_a_cold_disk(
    tmp_path: Path, open_session: Open
) -> None:
    server = FakeGpuServer(instance_mib=10.0)
    serve(open_session(server), tmp_path)
    with (tmp_path / "artifact" / "model.plan").open("wb") as plan:
        plan.truncate(1_350_000_000)
    serve(open_session(server), tmp_path)
    small, large = server.load_timeouts
    assert (small, large - small) == (120.0, 135.0)
