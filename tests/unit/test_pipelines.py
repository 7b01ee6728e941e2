"""Ensembles of repositories: their graph, what is refused, and parameters of their steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.commands.baseline import BaselineOptions, measure_baselines
from optimizer.commands.hosts import require_host
from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step, in_sequence
from optimizer.configuration.releases import refuse_newer_fields
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import DamagedStudyError, RequirementError, SpaceFileError, UsageError
from optimizer.machine.slots import Slot, local_slot
from optimizer.report.study_frames import trials_frame
from optimizer.space_file.chosen_point import fixed_at
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, read_searched, write_searched
from optimizer.triton.deployed_config import served_text
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ModelFiles, ServingSession
from optimizer.workload.model_spec import RepositorySource
from optimizer.workload.streams import Payloads
from tests.unit import repositories
from tests.unit.fake_server import FakeGpuServer
from tests.unit.pipelines import CONFIGS, OUTER, STEPS, TOP, space_of, write_repository

PATH = "ensemble_scheduling.max_inflight_requests"
INFLIGHT = f"config.{PATH}"
PINNED = "config.optimization.input_pinned_memory.enable"


def values(space: Space) -> dict[str, tuple[object, ...]]:
    """The values of all parameters by key, without those that have only one."""
    return {p.key: p.values for p in space.search_space.parameters if len(p.values) > 1}


def baseline(space: Space) -> ServingConfig:
    return space.search_space.config(space.search_space.baseline)


def configs_of(space: Space) -> list[ServingConfig]:
    searched = space.search_space
    return [searched.config(searched.at(row)) for row in range(len(searched))]


def refusals(folder: Path, parameters: dict[str, Any], **keys: Any) -> list[str]:
    with pytest.raises(SpaceFileError) as caught:
        space_of(folder, parameters, **keys)
    return [str(mistake) for mistake in caught.value.mistakes]


# The graph


def test_an_ensemble_is_served_with_its_steps_before_it(tmp_path: Path) -> None:
    space = space_of(tmp_path, {}, names={"emails": TOP})
    config = baseline(space)
    assert [model.name for model in config.models] == [*STEPS, "emails"]
    assert config.graph == ModelGraph((ComposedModel("emails", "ensemble", in_sequence(STEPS)),))
    assert [model.name for model in config.targets] == ["emails"]
    assert [stream.target for stream in space.workload.streams] == ["emails"]
    folders = [model.source.folder for model in space.models]  # type: ignore[union-attr]
    assert folders == [tmp_path / name for name in (*STEPS, TOP)]


def test_the_baseline_is_the_pipeline_as_deployed(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"instance_count": [2], "classifier.batching": [True]})
    for model in baseline(space).models:
        assert served_text(tmp_path / model.name, model)[0] == CONFIGS[model.name]


def test_steps_of_steps_are_served_and_a_shared_step_once(tmp_path: Path) -> None:
    configs = {**CONFIGS, "outer": OUTER}
    config = baseline(space_of(tmp_path, {}, configs, {"outer": "outer"}))
    assert [model.name for model in config.models] == [*STEPS, TOP, "outer"]
    assert config.graph == ModelGraph(
        (
            ComposedModel(TOP, "ensemble", in_sequence(STEPS)),
            ComposedModel("outer", "ensemble", (Step(TOP), Step("tokenizer"))),
        )
    )
    assert [model.name for model in config.targets] == ["outer"]
    assert [model.name for model in config.part(TOP).models] == [*STEPS, TOP]


TWICE = """\
platform: "ensemble"
max_batch_size: 8
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OTHER" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling {
  step [
    { model_name: "labeller" model_version: -1
      input_map { key: "SCORES" value: "scores" } output_map { key: "NAME" value: "LABEL" } },
    { model_name: "classifier" model_version: -1
      input_map { key: "TOKENS" value: "ids" } output_map { key: "LOGITS" value: "scores" } },
    { model_name: "tokenizer" model_version: -1
      input_map { key: "TEXT" value: "TEXT" } output_map { key: "IDS" value: "ids" } },
    { model_name: "classifier" model_version: -1
      input_map { key: "TOKENS" value: "ids" } output_map { key: "LOGITS" value: "OTHER" } }
  ]
}
"""
"""An ensemble that calls a model twice; a step's tensors are made by one that is listed later."""


def test_steps_follow_those_that_make_their_tensors(tmp_path: Path) -> None:
    space = space_of(tmp_path, {}, {**CONFIGS, TOP: TWICE})
    config = baseline(space)
    assert [model.name for model in config.models] == ["labeller", "classifier", "tokenizer", TOP]
    second = Step("classifier", (2,))
    steps = (Step("labeller", (1,)), second, Step("tokenizer"), second)
    graph = ModelGraph((ComposedModel(TOP, "ensemble", steps),))
    assert config.graph == graph
    assert graph.composed[0].models == ("labeller", "classifier", "tokenizer")
    assert graph.composed[0].in_order() == (2, 1, 3, 0)


def test_steps_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    circle = CONFIGS[TOP].replace('value: "TEXT"', 'value: "LABEL"')
    write_repository(tmp_path, {**CONFIGS, TOP: circle})
    message = (
        "none of the steps tokenizer, classifier, labeller can be the first: each takes a tensor"
    )
    with pytest.raises(UsageError, match=message):
        read_settings(RepositorySource(tmp_path, TOP))


def test_an_ensemble_needs_the_folder_of_a_version_without_files(tmp_path: Path) -> None:
    space = space_of(tmp_path / "models", {})
    (tmp_path / "models" / TOP / "1").rmdir()
    repository = ModelRepository(tmp_path / "served", tmp_path)
    [top] = baseline(space).targets
    repository.write(top, tmp_path / "models" / TOP, space.models[-1].payloads, ())
    assert (tmp_path / "served" / TOP / "1").is_dir()


class RecordingServer(FakeGpuServer):
    """Remembers what is loaded and unloaded; an ensemble brings its steps along."""

    def __init__(self) -> None:
        super().__init__(instance_mib=0.0)
        self.calls: list[tuple[str, ...]] = []

    def load(self, model: str, *_: object, **options: Any) -> None:
        steps = tuple(options["steps"])
        self.calls.append(("load", model, *steps))
        self.loaded = (*self.loaded, *steps, model)

    def unload(self, model: str, *_: object) -> None:
        self.calls.append(("unload", model))
        super().unload(model)


def test_the_ensemble_is_loaded_with_its_steps_and_unloaded_before_them(tmp_path: Path) -> None:
    config = baseline(space_of(tmp_path / "models", {}))
    server = RecordingServer()
    repository = ModelRepository(tmp_path / "served", tmp_path)
    session = ServingSession(server, repository, Slot((0,), (0,), ()))
    files = {
        m.name: ModelFiles(tmp_path / "models" / m.name, Payloads(()), ()) for m in config.models
    }
    session.serve(config, files)
    session.retire()
    unloads = [("unload", name) for name in (TOP, *reversed(STEPS))]
    assert server.calls == [("load", TOP, *STEPS), *unloads]
    assert {path.name for path in (tmp_path / "served").iterdir()} == {*STEPS, TOP}


# What cannot be served


@pytest.mark.parametrize(
    ("step", "old", "new", "message"),
    [
        (
            "tokenizer",
            "max_batch_size: 8",
            "max_batch_size: 8 sequence_batching { }",
            "step tokenizer: sequence_batching: requests of a stateful model",
        ),
        (
            "labeller",
            "max_batch_size: 8",
            "max_batch_size: 8 model_transaction_policy { decoupled: true }",
            "step labeller: model_transaction_policy.decoupled",
        ),
        (
            "classifier",
            "TYPE_INT64",
            "TYPE_INT32",
            "step classifier: takes TOKENS as INT32 [-1, -1], and the step tokenizer passes ids "
            "as INT64 [-1, 4]",
        ),
        (
            "labeller",
            "dims: [ 2 ]",
            "dims: [ 3 ]",
            "step labeller: takes SCORES as FP32 [-1, 3], and the step classifier passes logits "
            "as FP32 [-1, 2]",
        ),
        (
            "labeller",
            '"NAME" data_type: TYPE_STRING',
            '"NAME" data_type: TYPE_INT32',
            "the step labeller makes LABEL as INT32 [-1, 1], and the ensemble says STRING [-1, 1]",
        ),
        (
            "tokenizer",
            "max_batch_size: 8",
            "max_batch_size: 4",
            "step tokenizer: its max_batch_size is 4, and the ensemble's 8",
        ),
        (
            "classifier",
            "LOGITS",
            "SCORES",
            "step classifier: has no output LOGITS, only SCORES",
        ),
        (TOP, 'key: "TOKENS"', 'key: "IDS"', "step classifier: has no input IDS, only TOKENS"),
        (
            TOP,
            '{ key: "TOKENS" value: "ids" }',
            '{ key: "TOKENS" value: "x" }',
            "step classifier: no step makes x, its input TOKENS",
        ),
        (TOP, '"labeller"', '"labels"', "step labels: "),
        (TOP, '"LABEL" data_type', '"TAG" data_type', "output TAG: no step makes it"),
    ],
)
def test_one_message_names_the_step(
    tmp_path: Path, step: str, old: str, new: str, message: str
) -> None:
    assert old in CONFIGS[step]
    write_repository(tmp_path, {**CONFIGS, step: CONFIGS[step].replace(old, new, 1)})
    with pytest.raises(UsageError) as caught:
        read_settings(RepositorySource(tmp_path, TOP))
    assert str(caught.value).startswith(f"{tmp_path / TOP / 'config.pbtxt'}:")
    assert message in str(caught.value)


LOOP = """\
platform: "ensemble"
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "LABEL" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling {
  step [ { model_name: "OTHER" model_version: -1
           input_map { key: "TEXT" value: "TEXT" } output_map { key: "LABEL" value: "LABEL" } } ]
}
"""


def test_an_ensemble_that_is_a_step_of_itself_is_refused(tmp_path: Path) -> None:
    configs = {"one": LOOP.replace("OTHER", "two"), "two": LOOP.replace("OTHER", "one")}
    with pytest.raises(UsageError, match="the model one is a step of itself"):
        space_of(tmp_path, {}, configs, {"one": "one"})


def test_a_missing_step_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_repository(tmp_path, {name: CONFIGS[name] for name in (TOP, "tokenizer", "labeller")})
    source = RepositorySource(tmp_path, TOP)
    with pytest.raises(UsageError, match=f"step classifier: {tmp_path} has no model of this name"):
        read_settings(source)
    (tmp_path / "classifier" / "1").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"step classifier: .*config\.pbtxt is missing: write"):
        read_settings(source)
    text = ("classifier", CONFIGS["classifier"])
    assert read_settings(replace(source, completions=(text,))).step_names == STEPS


@pytest.mark.parametrize(
    "names",
    [{"mail": TOP, "tokenizer": "labeller"}, {"zoo": TOP, "tokenizer": "labeller"}],
)
def test_a_model_of_the_file_cannot_be_called_like_a_step(
    tmp_path: Path, names: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="models: tokenizer is a part of "):
        space_of(tmp_path, {}, names=names)


def test_two_ensembles_cannot_share_a_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"models: tokenizer is a part of tags and of {TOP}"):
        space_of(tmp_path, {}, {**CONFIGS, "tags": CONFIGS[TOP]}, {TOP: TOP, "tags": "tags"})


# Parameters of the steps


def test_a_key_names_the_step_that_its_parameter_is_of(tmp_path: Path) -> None:
    listed = {
        "tokenizer.instance_count": [1, 2],
        f"classifier.{PINNED}": [False],
        "classifier.batching": [True, False],
        f"{TOP}.{INFLIGHT}": [4],
    }
    assert values(space_of(tmp_path, listed)) == {
        "tokenizer.instance_count": (1, 2),
        f"classifier.{PINNED}": ("unchanged", False),
        "classifier.batching": (False, True),
        f"{TOP}.{INFLIGHT}": ("unchanged", 4),
    }


def test_a_parameter_without_a_name_is_of_every_step_that_it_concerns(tmp_path: Path) -> None:
    configs = {**CONFIGS, "labeller": CONFIGS["labeller"] + "instance_group [ { }, { } ]\n"}
    listed = {"instance_count": [1, 2], INFLIGHT: [4], "tokenizer.instance_count": [3]}
    found = values(space_of(tmp_path, listed, configs))
    assert found == {
        "tokenizer.instance_count": (1, 3),
        "classifier.instance_count": (1, 2),
        f"{TOP}.{INFLIGHT}": ("unchanged", 4),
    }


def test_conditions_are_not_of_the_ensemble_itself(tmp_path: Path) -> None:
    listed = {"instance_count": [1, 2]}
    space = space_of(tmp_path, listed, conditions=["instance_count == 2"])
    counts = {model.name: model.instance_count for model in baseline(space).models}
    assert counts == {**dict.fromkeys(STEPS, 2), TOP: 1}


def tried(space: Space) -> set[tuple[int, ...]]:
    """Return the numbers of instances of the steps at all points."""
    return {
        tuple(m.instance_count for m in config.models if m.name in STEPS)
        for config in configs_of(space)
    }


@pytest.mark.parametrize(
    ("conditions", "points"),
    [
        (["tokenizer.instance_count == 2"], {(2, n, m) for n in (1, 2, 3) for m in (1, 2, 3)}),
        (["instance_count <= 2", "tokenizer.instance_count + labeller.instance_count == 4"],
         {(2, n, 2) for n in (1, 2)}),
        (["tokenizer.instance_count == labeller.instance_count == 3",
          "text_classifier.config.optimization.input_pinned_memory.enable == False",
          "classifier.instance_count <= cores // cores or 'labeller.' == 'x'"], {(3, 1, 3)}),
    ],
)  # fmt: skip
def test_conditions_can_name_parameters_of_steps(
    tmp_path: Path, conditions: list[str], points: set[tuple[int, ...]]
) -> None:
    listed = {"instance_count": [1, 2, 3], f"{TOP}.{PINNED}": [False]}
    space = space_of(tmp_path, listed, conditions=conditions)
    assert tried(space) == points
    assert len(space.search_space) >= len(points)


def test_names_of_models_may_be_no_identifiers(tmp_path: Path) -> None:
    first, second = "tokenizer-v1.2", "tokenizer"
    configs = {**CONFIGS, first: CONFIGS["labeller"]}
    configs[TOP] = configs[TOP].replace('"labeller"', f'"{first}"')
    listed = {"instance_count": [1, 2]}
    rule = f"{first}.instance_count == {second}.instance_count + 1"
    space = space_of(tmp_path, listed, configs, conditions=[rule])
    counts = {m.name: m.instance_count for m in baseline(space).models}
    assert (counts[first], counts[second]) == (2, 1)


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        ("tokeniser.instance_count == 1", "'tokeniser.instance_count' is not allowed, and no "),
        ("tokenizer.instance_cont == 1", "instance_cont is no parameter of tokenizer; did you"),
        ("tokenizer.instance_count > 'a' + labeller.instance_count", "arithmetic needs numbers"),
        ("tokenizer.instance_count == labeller.config.x", "config.x is no parameter of labeller"),
        ("tokenizer.instance_count == labeller.instance_count == instance_count",
         "instance_count must be one of tokenizer.instance_count, labeller.instance_count"),
    ],
)  # fmt: skip
def test_a_wrong_condition_on_steps_is_reported(tmp_path: Path, condition: str, rule: str) -> None:
    [mistake] = refusals(tmp_path, {"instance_count": [1, 2]}, conditions=[condition])
    assert "conditions.0" in mistake
    assert rule in mistake


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            {"tokeniser.instance_count": [1, 2]},
            "parameters.tokeniser: tokeniser is none of the models, text_classifier, tokenizer, "
            "classifier, labeller; did you mean tokenizer?",
        ),
        (
            {f"{TOP}.instance_count": [2]},
            f"parameters.{TOP}.instance_count: has no effect on an ensemble, only on its steps: "
            "tokenizer, classifier, labeller",
        ),
        (
            {"classifier.padding": [[4]]},
            "parameters.classifier.padding: has no effect on a step: requests go to "
            "text_classifier",
        ),
        (
            {"classifier.max_batch_size": [4, 16]},
            "parameters.classifier.max_batch_size: must be at least 8, the max_batch_size of the "
            "ensemble text_classifier",
        ),
        (
            {"max_batch_size": [4]},
            "parameters.max_batch_size: must be at least 8, the max_batch_size of the ensemble",
        ),
        (
            {f"classifier.{INFLIGHT}": [4]},
            f"parameters.classifier.{INFLIGHT}: is a field of ensembles, and the model is none",
        ),
        ({"precision": ["int8"]}, "parameters.precision: must be left out"),
    ],
)
def test_a_parameter_that_cannot_be_searched_is_refused(
    tmp_path: Path, listed: dict[str, Any], message: str
) -> None:
    [mistake] = refusals(tmp_path, listed)
    assert mistake.startswith(message)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"tokenizer.instance_cont": 2}, "did you mean instance_count?"),
        ({"tokenizer.instance_count": [0]}, "tokenizer.instance_count"),
        ({"tokenizer.config.max_batch_size": 2}, "is the parameter max_batch_size"),
    ],
)
def test_a_wrong_value_is_reported_at_its_key(
    tmp_path: Path, listed: dict[str, Any], message: str
) -> None:
    [mistake] = refusals(tmp_path, listed)
    assert mistake.startswith("line ") or "parameters.tokenizer." in mistake
    assert message in mistake


def test_the_command_line_sets_parameters_of_steps(tmp_path: Path) -> None:
    space = space_of(tmp_path, {})
    fixed = fixed_at(space, {"instance_count": "2", "tokenizer.instance_count": "3"})
    config = baseline(fixed)
    counts = {model.name: model.most_instances for model in config.models}
    assert counts == {"tokenizer": 3, "classifier": 2, "labeller": 2, TOP: 1}
    assert config.graph == ModelGraph((ComposedModel(TOP, "ensemble", in_sequence(STEPS)),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({f"{TOP}.instance_count": "2"}, "has no effect on an ensemble"),
        ({"classifier.max_batch_size": "4", "classifier.batching": "true"}, "must be at least 8"),
        ({"tokeniser.instance_count": "2"}, "tokeniser is none of the models"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fixed_at(space_of(tmp_path, {}), settings)


def test_the_limit_of_requests_in_flight_has_a_short_name(tmp_path: Path) -> None:
    listed = {"max_inflight_requests": [4, 8], "classifier.batching": [True]}
    space = space_of(tmp_path, listed, conditions=[f"{TOP}.max_inflight_requests != 8"])
    assert values(space)[f"{TOP}.{INFLIGHT}"] == ("unchanged", 4, 8)
    limits = {dict(config.models[-1].parameters).get(PATH) for config in configs_of(space)}
    assert limits == {None, "4"}
    config = baseline(fixed_at(space, {"max_inflight_requests": "16"}))
    assert config.models[-1].parameters == ((PATH, "16"),)
    [mistake] = refusals(tmp_path / "twice", {"max_inflight_requests": [4], INFLIGHT: [4]})
    assert f"is the field {INFLIGHT}, which is given too" in mistake


def test_a_server_without_the_limit_is_refused_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.commands.hosts.find_embedded_runtime", lambda: None)
    slot = local_slot()
    with pytest.raises(RequirementError, match=rf"{INFLIGHT} needs Triton 2\.68 .* is 2\.51\.0"):
        require_host(space_of(tmp_path, {"max_inflight_requests": [4]}), slot)
    assert require_host(space_of(tmp_path / "without", {}), slot) == "embedded"


@pytest.mark.parametrize("version", ["2.68.0", "2.70.1", "3.0.0", "", None, "dev"])
def test_a_server_that_may_have_the_limit_is_not_refused(version: str | None) -> None:
    refuse_newer_fields([PATH, "dynamic_batching.preserve_ordering"], version)


def test_an_older_server_has_other_fields() -> None:
    refuse_newer_fields(["dynamic_batching.preserve_ordering"], "2.51.0")
    with pytest.raises(RequirementError, match=r"server is 2\.67\.0"):
        refuse_newer_fields([PATH], "2.67.0")


# As one configuration


def test_the_description_leaves_out_what_an_ensemble_does_not_have(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"classifier.batching": [True], f"{TOP}.{INFLIGHT}": [4]})
    described = {
        describe(space.search_space.config(space.search_space.at(row)))
        for row in range(len(space.search_space))
    }
    steps = (
        "tokenizer: as deployed, no batching, 1 instance; classifier: as deployed, max_batch_size "
        "8, queue delay 0 us, 1 instance; labeller: as deployed, no batching, 1 instance"
    )
    assert steps in described
    assert f"{steps}; {TOP}: ensemble_scheduling.max_inflight_requests 4" in described


def test_tables_have_the_parameters_of_each_step(tmp_path: Path) -> None:
    space = space_of(tmp_path, {f"{TOP}.{INFLIGHT}": [4], f"{TOP}.{PINNED}": [False]})
    columns = trials_frame([], space.search_space).columns
    assert {f"{step}.instance_count" for step in STEPS} <= {*columns}
    of_top = {name for name in columns if name.startswith(f"{TOP}.")}
    cache = {f"{TOP}.response_cache", f"{TOP}.response_cache_mib"}
    assert of_top == {f"{TOP}.padding", f"{TOP}.{INFLIGHT}", f"{TOP}.{PINNED}", *cache}


def test_a_pipeline_is_stored_and_read_back(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"tokenizer.instance_count": [1, 2]})
    directory = StudyDirectory(tmp_path / "study")
    directory.root.mkdir()
    searched = SearchedSpace("s", space.search_space, space.workload, space.price, space.demand)
    write_searched(directory, searched)
    read = read_searched(directory).search_space
    assert read == space.search_space
    for row in range(len(read)):
        assert read.position_of(read.config(read.at(row))) == read.at(row)
    assert space.content["parameters"]["of_models"] == {"tokenizer": {"instance_count": [1, 2]}}


def test_a_stored_stream_to_a_step_is_refused(tmp_path: Path) -> None:
    space = space_of(tmp_path, {})
    directory = StudyDirectory(tmp_path / "study")
    directory.root.mkdir()
    [stream] = space.workload.streams
    workload = replace(space.workload, streams=(replace(stream, target="classifier"),))
    write_searched(
        directory, SearchedSpace("s", space.search_space, workload, space.price, space.demand)
    )
    with pytest.raises(DamagedStudyError, match="'classifier' is none of the models"):
        read_searched(directory)


def test_the_published_configurations_are_not_of_an_ensemble(tmp_path: Path) -> None:
    space_of(tmp_path, {"classifier.batching": [False, True]})
    options = BaselineOptions(tmp_path / "space.yaml")
    with pytest.raises(
        UsageError, match="of single models, and text_classifier is a pipeline: `me"
    ):
        measure_baselines(options, lambda _: None)


def test_nor_are_they_of_a_model_of_a_repository(tmp_path: Path) -> None:
    repositories.space_of(tmp_path, {"batching": [False, True]})
    options = BaselineOptions(tmp_path / "space.yaml")
    with pytest.raises(UsageError, match="of a repository is served as it is: `measure` measures"):
        measure_baselines(options, lambda _: None)
