"""Models of the Python backend that call others: their graph, parameters and order of loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import SpaceFileError, UsageError
from optimizer.machine.slots import Slot
from optimizer.space_file.reader import Space
from optimizer.triton.deployed_config import served_text
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.streams import Payloads
from tests.e2e.pipeline_models import BLS
from tests.unit.pipelines import CONFIGS, STEPS, TOP, space_of
from tests.unit.test_pipelines import PINNED, RecordingServer, baseline, values

BLS_TOP = "text_bls"
WITH_BLS = {**CONFIGS, BLS_TOP: BLS}

OF_BLS = CONFIGS[TOP].replace("tokenizer", "words").replace("IDS", "WORDS")
"""The ensemble with a BLS model as its first step."""
WORDS = CONFIGS["tokenizer"].replace("IDS", "WORDS")


def bls_space(folder: Path, calls: object, parameters: dict[str, Any], **keys: Any) -> Space:
    configs = {**WITH_BLS, **keys.pop("configs", {})}
    names = keys.pop("names", {BLS_TOP: BLS_TOP})
    return space_of(folder, parameters, configs, names, calls, **keys)


def test_a_model_that_calls_others_is_served_after_them(tmp_path: Path) -> None:
    calls = ["tokenizer", {"model": "classifier", "count": 2.5}, "labeller", "tokenizer"]
    space = bls_space(tmp_path, calls, {"instance_count": [2]})
    config = baseline(space)
    assert [model.name for model in config.models] == [*STEPS, BLS_TOP]
    steps = (
        Step("tokenizer"), Step("classifier", (0,), 2.5), Step("labeller", (1,)),
        Step("tokenizer", (2,)),
    )  # fmt: skip
    assert config.graph == ModelGraph((ComposedModel(BLS_TOP, "bls", steps),))
    assert [model.name for model in config.targets] == [BLS_TOP]
    for model in config.models:
        assert served_text(tmp_path / model.name, model)[0] == WITH_BLS[model.name]


def test_a_model_that_calls_others_has_parameters_of_its_own(tmp_path: Path) -> None:
    listed = {
        "instance_count": [1, 2],
        f"{BLS_TOP}.instance_count": [4],
        f"{BLS_TOP}.batching": [True, False],
        f"{BLS_TOP}.{PINNED}": [False],
        "classifier.max_batch_size": [2, 4, 8],
        "classifier.batching": [True, False],
    }
    space = bls_space(tmp_path, STEPS, listed)
    assert values(space) == {
        "tokenizer.instance_count": (1, 2),
        "classifier.batching": (False, True),
        "classifier.max_batch_size": (2, 4, 8),
        "classifier.instance_count": (1, 2),
        "labeller.instance_count": (1, 2),
        f"{BLS_TOP}.batching": (False, True),
        f"{BLS_TOP}.instance_count": (1, 4),
        f"{BLS_TOP}.{PINNED}": ("unchanged", False),
    }
    assert f"{BLS_TOP}: as deployed, no batching, 1 instance" in describe(baseline(space))


def test_a_bls_model_can_be_the_step_of_an_ensemble_and_of_another(tmp_path: Path) -> None:
    configs = {TOP: OF_BLS, "words": WORDS}
    calls = {"words": ["tokenizer"], "tokenizer": ["labeller"]}
    space = bls_space(tmp_path, calls, {}, configs=configs, names={"emails": TOP})
    graph = ModelGraph(
        (
            ComposedModel("tokenizer", "bls", (Step("labeller"),)),
            ComposedModel("words", "bls", (Step("tokenizer"),)),
            ComposedModel(
                "emails",
                "ensemble",
                (Step("words"), Step("classifier", (0,)), Step("labeller", (1,))),
            ),
        )
    )
    config = baseline(space)
    assert config.graph == graph
    assert [m.name for m in config.models] == [
        "labeller", "tokenizer", "words", "classifier", "emails"
    ]  # fmt: skip


def served(config: ServingConfig, folder: Path) -> list[tuple[str, ...]]:
    """Return what a server is told to load and unload for a configuration."""
    server = RecordingServer()
    repository = ModelRepository(folder / "served", folder)
    session = ServingSession(server, repository, Slot((0,), (0,), ()))
    files = {m.name: ModelFiles(folder / m.name, Payloads(()), ()) for m in config.models}
    session.serve(config, files)
    session.retire()
    return server.calls


def test_what_is_called_is_loaded_first_and_unloaded_last(tmp_path: Path) -> None:
    calls = served(baseline(bls_space(tmp_path, STEPS, {})), tmp_path)
    names = (*STEPS, BLS_TOP)
    assert calls == [
        *(("load", name) for name in names),
        *(("unload", name) for name in reversed(names)),
    ]


def test_an_ensemble_that_is_called_is_loaded_with_its_steps(tmp_path: Path) -> None:
    space = bls_space(tmp_path, [TOP, "tokenizer"], {})
    assert served(baseline(space), tmp_path)[:2] == [("load", TOP, *STEPS), ("load", BLS_TOP)]


@pytest.mark.parametrize(
    ("calls", "names", "message"),
    [
        (["labels"], {BLS_TOP: BLS_TOP}, "step labels: .* has no model of this name"),
        ([BLS_TOP], {BLS_TOP: BLS_TOP}, f"the model {BLS_TOP} is a step of itself"),
        (["tokenizer"], {TOP: TOP}, "source.calls: must be left out: an ensemble calls what"),
        (
            {"classifier": ["labeller"]},
            {BLS_TOP: BLS_TOP},
            f"calls of classifier, which {BLS_TOP} is not composed of",
        ),
    ],
)
def test_calls_that_cannot_be_served_are_refused(
    tmp_path: Path, calls: object, names: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bls_space(tmp_path, calls, {}, names=names)


def test_a_model_of_another_backend_calls_no_others(tmp_path: Path) -> None:
    configs = {BLS_TOP: BLS.replace('"python"', '"onnxruntime"')}
    with pytest.raises(UsageError, match="only models of the backend python call others"):
        bls_space(tmp_path, STEPS, {}, configs=configs)


@pytest.mark.parametrize(
    ("calls", "mistake"),
    [
        ("all", f"models.{BLS_TOP}.source.calls: "),
        ([{"model": "tokenizer", "count": 0}], f"models.{BLS_TOP}.source.calls.0.count: "),
        ([{"name": "tokenizer"}], f"models.{BLS_TOP}.source.calls.0"),
        ({"a": "tokenizer"}, f"models.{BLS_TOP}.source.calls.a: "),
    ],
)
def test_a_wrong_call_is_reported_at_its_key(tmp_path: Path, calls: object, mistake: str) -> None:
    with pytest.raises(SpaceFileError) as caught:
        bls_space(tmp_path, calls, {})
    assert all(mistake in str(each) for each in caught.value.mistakes), caught.value
