"""What is measured of the winner besides its capacity, on the real server."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Searched, completed
from tests.e2e.running import Optimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Measured:
    """A study whose winner was measured further, and how to run it again."""

    folder: Path
    search: tuple[object, ...]
    output: str = ""

    def run(self, *options: object) -> Optimizer:
        return completed(self.folder, *self.search, "--timeout", "45s", *options)

    def found(self, name: str) -> dict[str, Any]:
        path = self.folder / "results" / "tiny" / "winner" / f"{name}.json"
        return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def measured(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A study that was finished before, so that the whole time is for its winner."""
    folder = tmp_path_factory.mktemp("winner")
    searched.copy_to(folder)
    study = Measured(folder, searched.search)
    asked = ("--with", "cold-start", "--with", "transports")
    output = study.run(*asked).output
    if "not measured" in output:
        # On a machine that is busy with something else; a rerun measures what is missing.
        output = study.run(*asked).output
    return replace(study, output=output)


def test_starts_are_measured_with_warm_up_and_without(measured: Measured) -> None:
    warm, cold = measured.found("cold_start")["starts"]
    assert (warm["warmup"], cold["warmup"]) == (True, False)
    for start in (warm, cold):
        assert start["server_seconds"] > 0
        assert start["load_seconds"] > 0
        assert start["loads"] == 1 + len(start["first_requests"])
        sizes = [each["batch_size"] for each in start["first_requests"]]
        assert (sizes[0], sizes[-1]) == (1, 4), "2 only where there is time for it"
        [stream] = start["level"]["streams"]
        assert stream["errors"] == 0
        [executed] = start["level"]["server"]
        assert executed["requests"] == stream["sent"], "no request came before the level"
    assert "With model_warmup, an instance serves" in measured.output


def test_transports_are_compared_on_the_same_models(measured: Measured) -> None:
    compared = measured.found("transports")
    assert compared["refused"] == []
    sent = [
        (way["transport"]["protocol"], way["transport"]["encoding"],
         way["transport"]["shared_memory"], way["batch_size"])
        for way in (cost["sent_as"] for cost in compared["costs"])
    ]  # fmt: skip
    assert sent == [
        ("grpc", "binary", False, 1),
        ("http", "json", False, 1),
        ("http", "binary", False, 1),
        ("grpc", "binary", True, 1),
        ("grpc", "binary", False, 4),
    ]
    for cost in compared["costs"]:
        assert min(cost["throughputs_per_second"]) > 0
        assert cost["moderate_p95_ms"] >= cost["moderate_p50_ms"] > 0
        assert cost["client_cpu_ms"] > 0
        assert cost["server_cpu_ms"] > 0
    assert "requests of 4 inferences serve" in " ".join(measured.output.split())


def test_a_rerun_measures_nothing_again(measured: Measured) -> None:
    before = measured.found("cold_start"), measured.found("transports")
    assert "Study tiny is finished" in measured.run("--with", "cold-start").output
    assert (measured.found("cold_start"), measured.found("transports")) == before


def test_the_exported_warm_up_has_its_reason(measured: Measured) -> None:
    text = (measured.folder / "results/tiny/best/bert/config.pbtxt").read_text()
    assert "# measured: the first request took" in text
