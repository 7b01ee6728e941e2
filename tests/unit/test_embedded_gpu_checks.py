"""Every check of tests/e2e/embedded_gpu.py can fail; those that need a GPU run here on fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimizer.configuration.hardware import Gpu
from optimizer.errors import ModelLoadFailure, RequirementError
from optimizer.machine import gpus
from optimizer.measurement.model_memory import ModelMemory
from tests.e2e import embedded_gpu
from tests.e2e.check_report import CannotRunError
from tests.e2e.embedded_gpu import Checks
from tests.e2e.gpu_search import SearchOnGpu
from tests.unit import fake_nvml
from tests.unit.fake_nvml import UUID, Card
from tests.unit.studies import MACHINE

T4 = Gpu(UUID, "NVIDIA T4", (7, 5), 15360)
LOAD_PID = 41
FUSED = ["_gemm_mha_v2_myl0_1"] * 6


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A card that tells of the load what a real one should; a test changes what it tells."""
    only = Card(memory=400 * 2**20, utilization=97)
    fake_nvml.install(monkeypatch, {UUID: only})
    monkeypatch.setattr(gpus, "_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(gpus, "_RELEASE_SECONDS", 0.0)
    sampled = Checks._sampled
    monkeypatch.setattr(Checks, "_sampled", lambda self: sampled(self, 0.05))

    @contextmanager
    def running(*_: object) -> Iterator[int]:
        before = (only.memory, only.pids)
        if only.memory is not None and only.utilization != 0:
            only.memory, only.pids = only.memory + 1800 * 2**20, (LOAD_PID,)
        try:
            yield LOAD_PID
        finally:
            only.memory, only.pids = before

    monkeypatch.setattr(embedded_gpu, "_running", running)
    return only


@pytest.fixture
def checks(card: Card, tmp_path: Path) -> Checks:
    return Checks(T4, UUID, tmp_path, tmp_path / "cache")


def test_a_known_load_is_seen_or_the_check_fails(checks: Checks, card: Card) -> None:
    figures = checks.nvml_shows_a_known_load()
    assert figures["memory of the load, MiB"] == 1800
    assert checks.a_foreign_process_is_seen() == {"seen": {f"NVIDIA T4 ({UUID})": (LOAD_PID,)}}
    card.utilization = 30
    with pytest.raises(AssertionError, match=r"30\.0 % under full load"):
        checks.nvml_shows_a_known_load()
    card.utilization = 0  # nothing of the load is seen
    with pytest.raises(AssertionError):
        checks.nvml_shows_a_known_load()
    with pytest.raises(AssertionError, match="41 is not among"):
        checks.a_foreign_process_is_seen()


def test_a_runtime_that_does_not_see_the_gpu_fails_and_no_other_is_searched(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, needs: Any, __: object) -> str:
        if "pytorch" in needs.runtimes:
            raise RequirementError("no CUDA")
        return "embedded"

    monkeypatch.setattr(embedded_gpu, "require_server", refuse)
    with pytest.raises(AssertionError, match="pytorch: no CUDA"):
        checks.runtimes_see_the_gpu()
    assert checks._usable == ("onnxruntime",)


# Memory


class Session:
    """A session whose model processes take the memory of a fake card."""

    def __init__(self, card: Card, one_mib: int, kept_mib: int = 0, failure: str = "") -> None:
        self._card, self._one, self._kept, self._failure = card, one_mib, kept_mib, failure
        self._loaded = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.retire()

    def serve(self, processes: int, _: object) -> SimpleNamespace:
        if self._card.pids == (LOAD_PID,) and self._failure:
            raise ModelLoadFailure(self._failure)
        self._loaded = processes
        self._use(processes * self._one)
        return SimpleNamespace(processes=range(processes), server=SimpleNamespace(pid=1))

    def memory_of_models(self) -> ModelMemory:
        return ModelMemory(float(self._loaded * self._one), 4000.0)

    def retire(self, *, wait: bool = False) -> None:
        self._use((self._kept if self._loaded > 1 else 0) - self._loaded * self._one)
        self._loaded = 0

    def _use(self, more_mib: int) -> None:
        assert self._card.memory is not None
        self._card.memory += more_mib * 2**20


@pytest.fixture
def serve_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Session], None]:
    def use(session: Session) -> None:
        monkeypatch.setattr(Checks, "_session", lambda _: session)
        monkeypatch.setattr(Checks, "_served_by", lambda _, processes: processes)
        monkeypatch.setattr(Checks, "_files", {})
        monkeypatch.setattr(embedded_gpu, "_RELEASE_SECONDS", 0.0)

    return use


Serve = Callable[[Session], None]


def test_processes_take_their_memory_and_give_it_back(
    checks: Checks, card: Card, serve_by: Serve
) -> None:
    serve_by(Session(card, 700))
    assert checks.memory_of_processes() == {
        "1 of them": ModelMemory(700.0, 4000.0),
        "3 of them": ModelMemory(2100.0, 4000.0),
    }
    returned = checks.memory_is_returned()
    assert returned == {"MiB in use: empty": 400.0, "loaded": 2500.0, "after unload": 400.0}
    serve_by(Session(card, 700, kept_mib=300))
    with pytest.raises(AssertionError, match="300 MiB are kept"):
        checks.memory_is_returned()
    serve_by(Session(card, 0))
    with pytest.raises(AssertionError):
        checks.memory_of_processes()


def test_a_model_must_not_load_on_a_full_gpu_and_the_failure_must_say_why(
    checks: Checks, card: Card, serve_by: Serve
) -> None:
    serve_by(Session(card, 700, failure="bert failed to load: CUDA out of memory"))
    assert "CUDA out of memory" in str(checks.out_of_memory()["failure"])
    serve_by(Session(card, 700))
    with pytest.raises(AssertionError, match="loaded on a full GPU"):
        checks.out_of_memory()
    serve_by(Session(card, 700, failure="it failed"))
    with pytest.raises(AssertionError, match="it failed"):
        checks.out_of_memory()


# Engines


@pytest.mark.parametrize(
    ("layers", "difference", "wrong"),
    [
        (FUSED, 0.0, None),
        (FUSED[1:], 0.0, "5 of 6 attentions are one kernel"),
        (FUSED, 0.5, "'largest_difference': 0.5"),
    ],
)
def test_an_engine_has_fused_attentions_and_the_same_answers_from_a_cuda_graph(
    checks: Checks,
    monkeypatch: pytest.MonkeyPatch,
    layers: list[str],
    difference: float,
    wrong: str | None,
) -> None:
    told: Mapping[str, Any] = {"layers": layers, "graphs": {"largest_difference": difference}}
    monkeypatch.setattr(embedded_gpu, "find_spec", lambda _: object())
    monkeypatch.setattr(Checks, "_built", lambda *_: Path("engine"))
    monkeypatch.setattr(embedded_gpu, "_engine_on_gpu", lambda command, _: told[command])
    if wrong is None:
        assert checks.cuda_graphs()["fused attentions"] == 6
        return
    with pytest.raises(AssertionError, match=wrong):
        checks.cuda_graphs()


def test_without_tensorrt_no_engine_is_built(
    checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_gpu, "find_spec", lambda _: None)
    with pytest.raises(CannotRunError, match="tensorrt package is not installed"):
        checks.cuda_graphs()


def test_a_load_that_does_not_start_says_why() -> None:
    load = embedded_gpu._running("raise SystemExit('no CUDA here')")
    with pytest.raises(AssertionError, match=r"did not start: no CUDA here"), load:
        pytest.fail("it started")


# The search


def searched(row: Mapping[str, object]) -> SearchOnGpu:
    study = SimpleNamespace(
        prepared="prepared.json",
        read_json=lambda _: {"artifacts": [{"artifact": "bert/pytorch/fp16", **row}]},
    )
    return SearchOnGpu(study, MACHINE.cpu)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"dropped": None, "accuracy": {"mean_cosine": 0.9999}, "instance_mib": 9.0}, None),
        ({"dropped": "too large"}, "too large"),
        ({"dropped": None, "accuracy": {"mean_cosine": 0.99}}, "0.99"),
    ],
)
def test_an_artefact_is_near_the_reference(row: Mapping[str, object], wrong: str | None) -> None:
    search = searched(row)
    if wrong is None:
        assert search.assert_near_the_reference("pytorch/fp16") == 0.9999
        return
    with pytest.raises(AssertionError, match=wrong):
        search.assert_near_the_reference("pytorch/fp16")


def test_without_a_search_there_is_no_parity(checks: Checks) -> None:
    with pytest.raises(CannotRunError, match="judged no artefact"):
        checks.parity()
