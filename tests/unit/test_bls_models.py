"""Models of the Python backend that call others: their graph, parameters and order of loading."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tritonclient.grpc import service_pb2

from optimizer.commands.init import write_space_from
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import LoadTestFailure, SpaceFileError, UsageError
from optimizer.files.untrusted_yaml import parse_yaml
from optimizer.machine.slots import Slot
from optimizer.search.gate_server import DeployedPipeline
from optimizer.space_file.reader import Space
from optimizer.triton.control import ServerControl
from optimizer.triton.deployed_config import served_text
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.triton.observed_calls import attributed_calls, calls_in_code, count_calls
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.model_spec import Call, Calls, RepositorySource
from optimizer.workload.streams import Payloads
from tests.e2e.pipeline_models import BLS, write_bls
from tests.unit.pipelines import CONFIGS, STEPS, TOP, space_of
from tests.unit.repositories import config_of
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


def test_the_gate_serves_as_many_callers_as_the_space_has(tmp_path: Path) -> None:
    listed = {"instance_count": [1, 2], f"{BLS_TOP}.instance_count": [1, 3]}
    space = bls_space(tmp_path, STEPS, listed)
    pipeline = DeployedPipeline(baseline(space), {}).with_most_instances(space.search_space)
    counts = {model.name: model.instance_count for model in pipeline.config.models}
    assert counts == {**dict.fromkeys(STEPS, 1), BLS_TOP: 3}


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
            f"calls of classifier, which is not a step of {BLS_TOP}",
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


# What the code shows


def source_of(repository: Path, model: str = BLS_TOP) -> RepositorySource:
    return RepositorySource(repository, model)


def test_calls_must_be_stated_where_the_code_makes_requests(tmp_path: Path) -> None:
    write_bls(tmp_path)
    source = source_of(tmp_path)
    message = rf"source\.calls: is required: .* such as {{{BLS_TOP}: \[MODEL, MODEL\]}}"
    with pytest.raises(UsageError, match=message):
        read_settings(source)
    assert not read_settings(replace(source, calls=((BLS_TOP, ()),))).steps
    assert not read_settings(source_of(tmp_path, "tokenizer")).steps


def test_the_code_names_what_it_calls(tmp_path: Path) -> None:
    write_bls(tmp_path)
    assert calls_in_code(source_of(tmp_path)) == ((BLS_TOP, tuple(map(Call, STEPS))),)
    assert calls_in_code(source_of(tmp_path, TOP)) == ()
    (tmp_path / TOP / "config.pbtxt").write_text(CONFIGS[TOP].replace("tokenizer", BLS_TOP))
    assert calls_in_code(source_of(tmp_path, TOP)) == ((BLS_TOP, tuple(map(Call, STEPS))),)
    for code in ("pb_utils.InferenceRequest(model_name=x)", "no Python: InferenceRequest("):
        (tmp_path / BLS_TOP / "1" / "model.py").write_text(code)
        assert calls_in_code(source_of(tmp_path)) is None


def test_a_space_file_is_written_for_a_model_that_calls_others(tmp_path: Path) -> None:
    write_bls(tmp_path)
    write_space_from(tmp_path / BLS_TOP, tmp_path / "space.yaml")
    document = parse_yaml((tmp_path / "space.yaml").read_text())
    assert document["models"][BLS_TOP]["source"]["calls"] == [*STEPS]
    names = (*STEPS, BLS_TOP)
    expected = {f"{name}.{p}" for name in names for p in ("batching", "instance_count")}
    assert {*document["parameters"]} == expected
    (tmp_path / BLS_TOP / "1" / "model.py").write_text("pb_utils.InferenceRequest(model_name=x)")
    write_space_from(tmp_path / BLS_TOP, tmp_path / "unknown.yaml")
    document = parse_yaml((tmp_path / "unknown.yaml").read_text())
    assert document["models"][BLS_TOP]["source"]["calls"] == "auto"
    assert {*document["parameters"]} >= {"batching", "instance_count"}


# What a server counts


class CountingServer:
    """Counts a request to a model, and those that it leads to, as Triton does."""

    def __init__(self, per_request: Sequence[Sequence[str]], error: str | None = None) -> None:
        self.left, self.error = list(per_request), error
        self.counters: dict[str, service_pb2.ModelStatistics] = defaultdict(
            service_pb2.ModelStatistics
        )
        self.clock = 0

    def statistics(self, model: str) -> service_pb2.ModelStatistics:
        counters = service_pb2.ModelStatistics()
        counters.CopyFrom(self.counters[model])
        return counters

    def error_of_one_request(self, model: str, *_: object) -> str | None:
        for name in (*self.left.pop(0), model):
            self.clock += 1
            self.counters[name].inference_stats.success.count += 1
            self.counters[name].last_inference = self.clock
        return self.error

    def explained(self, _: str, error: str) -> str:
        return error


def counted(server: CountingServer, requests: int) -> dict[str, float]:
    control = cast(ServerControl, server)
    return count_calls(control, "top", ["a", "b", "c"], [{} for _ in range(requests)])


def test_calls_are_counted_in_their_order() -> None:
    server = CountingServer([["c", "a"], ["c", "a", "a"], ["c"], ["c"]])
    assert list(counted(server, 4).items()) == [("c", 1.0), ("a", 0.75)]


def test_a_request_that_fails_shows_nothing() -> None:
    with pytest.raises(LoadTestFailure, match="top did not answer: Model 'a' is not ready"):
        counted(CountingServer([["b"]], "Model 'a' is not ready"), 1)


def attributed(folder: Path, model: str, counts: dict[str, float]) -> Calls:
    configs = {
        path.parent.name: config_of(path.read_text()) for path in folder.glob("*/config.pbtxt")
    }
    return attributed_calls(source_of(folder, model), configs, counts)


def test_what_ensembles_call_is_not_called_by_code(tmp_path: Path) -> None:
    write_bls(tmp_path)
    steps = dict.fromkeys(STEPS, 1.0)
    assert attributed(tmp_path, TOP, steps) == ()
    assert attributed(tmp_path, BLS_TOP, steps) == ((BLS_TOP, tuple(map(Call, STEPS))),)
    both = {**steps, "tokenizer": 2.0, TOP: 1.0}
    calls = ((BLS_TOP, (Call("tokenizer"), Call(TOP))),)
    assert attributed(tmp_path, BLS_TOP, both) == calls


def test_calls_of_a_step_are_counted_for_each_of_its_requests(tmp_path: Path) -> None:
    write_bls(tmp_path)
    (tmp_path / TOP / "config.pbtxt").write_text(CONFIGS[TOP].replace("tokenizer", BLS_TOP))
    counts = {"tokenizer": 1.5, BLS_TOP: 1.0, "classifier": 1.0, "labeller": 1.0}
    assert attributed(tmp_path, TOP, counts) == ((BLS_TOP, (Call("tokenizer", 1.5),)),)


def test_calls_that_two_models_can_have_made_must_be_stated(tmp_path: Path) -> None:
    write_bls(tmp_path)
    shutil.copytree(tmp_path / BLS_TOP, tmp_path / "second")
    message = f"auto cannot tell which of {BLS_TOP}, second calls second, labeller: state"
    with pytest.raises(UsageError, match=message):
        attributed(tmp_path, BLS_TOP, {"second": 1.0, "labeller": 1.0})
