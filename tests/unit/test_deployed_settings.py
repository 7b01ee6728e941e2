"""The space of a deployed model: its configuration is the baseline, whatever the file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.commands.hosts import require_host
from optimizer.commands.run_context import open_point, open_space
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.configuration.named_parameters import UNCHANGED
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing, describe
from optimizer.errors import RequirementError, SpaceFileError, UsageError
from optimizer.machine.slots import Slot, local_slot
from optimizer.space_file.chosen_point import fixed_at
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace, read_searched, write_searched
from optimizer.triton.deployed_config import served_text
from tests.e2e import tiny
from tests.unit.repositories import MAIL, content, space_of, write_config

PINNED = "config.optimization.input_pinned_memory.enable"
ORDER = "config.dynamic_batching.preserve_ordering"
PLAIN = MAIL[: MAIL.index("dynamic_batching")] + MAIL[MAIL.index("parameters") :]
"""`MAIL` without a batcher."""


def values(space: Space) -> dict[str, tuple[object, ...]]:
    return {p.name: p.values for p in space.search_space.parameters}


def baseline(space: SearchSpace) -> ModelServing:
    [model] = space.config(space.baseline).models
    return model


def served(folder: Path, space: Space) -> str:
    return served_text(folder / "mail", baseline(space.search_space))[0]


def refusals(folder: Path, parameters: dict[str, Any], text: str = MAIL, **model: Any) -> list[str]:
    with pytest.raises(SpaceFileError) as caught:
        space_of(folder, parameters, text, **model)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_what_is_not_listed_stays_as_deployed(tmp_path: Path) -> None:
    space = space_of(tmp_path, {})
    assert len(space.search_space) == 1
    assert values(space)["runtime"] == ("repository",)
    assert values(space)["precision"] == ("as_deployed",)
    assert values(space)["max_queue_delay_us"] == (300,)
    assert served(tmp_path, space) == MAIL


def test_the_baseline_is_as_deployed_even_where_the_lists_lack_its_values(tmp_path: Path) -> None:
    listed = {
        "batching": [False],
        "max_batch_size": [2, 16],
        "preferred_batch_size": ["none"],
        "max_queue_delay_microseconds": [0, 1000],
        "instance_count": [1, 4],
        PINNED: [True, False],
        ORDER: [False],
    }
    space = space_of(tmp_path, listed)
    assert values(space)["batching"] == (True, False)
    assert values(space)["max_batch_size"] == (2, 8, 16)
    assert values(space)["preferred_batch_sizes"] == ((4, 8), "none")
    assert values(space)["max_queue_delay_us"] == (0, 300, 1000)
    assert values(space)["instance_count"] == (1, 2, 4)
    assert values(space)[PINNED] == (UNCHANGED, True, False)
    assert served(tmp_path, space) == MAIL


def test_instances_may_have_more_threads_than_cores(tmp_path: Path) -> None:
    """How many threads an instance has is in the owner's code."""
    space = space_of(tmp_path, {"instance_count": [1, 2, 16]})
    counts = {m.instance_count for m in _models(space.search_space)}
    assert counts == {1, 2, 16}


def test_a_field_of_the_batcher_has_no_effect_without_batching(tmp_path: Path) -> None:
    listed = {"batching": [True, False], ORDER: [True, False], PINNED: ["unchanged", False]}
    models = _models(space_of(tmp_path, listed).search_space)
    orders = [dict(m.parameters).get(ORDER.removeprefix("config.")) for m in models if m.batching]
    assert sorted(map(str, orders)) == ["None", "None", "false", "false", "true", "true"]
    alone = [m.parameters for m in models if not m.batching]
    path = PINNED.removeprefix("config.")
    assert sorted(alone) == [(), ((path, "false"),)]


def _models(space: SearchSpace) -> list[ModelServing]:
    return [space.config(space.at(row)).models[0] for row in range(len(space))]


def test_a_field_is_shown_and_stored_and_read_back(tmp_path: Path) -> None:
    space = space_of(tmp_path, {PINNED: [False], "instance_count": [1]})
    descriptions = {describe(space.search_space.config(space.search_space.at(row)))
                    for row in range(len(space.search_space))}  # fmt: skip
    assert (
        "as deployed, max_batch_size 8, preferred 4/8, queue delay 300 us, 1 instance, "
        "optimization.input_pinned_memory.enable false"
    ) in descriptions
    directory = StudyDirectory(tmp_path / "study")
    directory.root.mkdir()
    write_searched(
        directory,
        SearchedSpace("s", space.search_space, space.workload, space.price, space.demand),
    )
    read = read_searched(directory).search_space
    assert read == space.search_space
    assert read.baseline == space.search_space.baseline


@pytest.mark.parametrize(
    ("listed", "text", "message"),
    [
        (
            {"runtime": ["onnxruntime", "openvino"]},
            MAIL,
            "parameters.runtime: must be left out: the model is served as repository",
        ),
        (
            {"precision": ["fp16"]},
            MAIL,
            "parameters.precision: must be left out: the model is served as as_deployed",
        ),
        (
            {"intra_op_threads": [1, 2]},
            MAIL,
            "parameters.intra_op_threads: has no effect on a model of a repository",
        ),
        (
            {"rate_limit": [1]},
            MAIL,
            "parameters.rate_limit: has no effect on a model of a repository",
        ),
        (
            {"instance_count": [1, 2]},
            MAIL + "instance_group { count: 1 kind: KIND_CPU }",
            "parameters.instance_count: must be left out: the model has 2 instance groups",
        ),
    ],
)
def test_a_parameter_that_cannot_be_searched_is_refused(
    tmp_path: Path, listed: dict[str, Any], text: str, message: str
) -> None:
    [mistake] = refusals(tmp_path, listed, text)
    assert message in mistake
    assert "(models.mail)" in mistake


def test_batching_without_a_batch_axis_is_refused(tmp_path: Path) -> None:
    text = PLAIN.replace("max_batch_size: 8", "max_batch_size: 0")
    listed = {"batching": [True, False]}
    [mistake] = refusals(tmp_path / "said", listed, text, batched=False)
    assert "nothing can be batched" in mistake
    [mistake] = refusals(tmp_path / "not said", listed, text)
    assert "parameters.batching: must be false: the model's max_batch_size is 0" in mistake


def test_runtime_repository_needs_a_repository(tmp_path: Path) -> None:
    path = tiny.write_space(tmp_path, tiny.space(parameters={"runtime": ["repository"]}))
    with pytest.raises(SpaceFileError, match="repository needs a model of a repository"):
        open_space(path)


def test_the_source_needs_a_model_and_a_folder(tmp_path: Path) -> None:
    for source, message in {
        "nowhere": "nowhere",
        ".": "must be given with repository",
    }.items():
        own = {"repository": source} | ({"model": "mail"} if source == "nowhere" else {})
        path = tiny.write_space(tmp_path, content({}, source=own))
        with pytest.raises(SpaceFileError, match=message):
            open_space(path)


def test_a_model_may_have_dots_and_dashes_in_its_name(tmp_path: Path) -> None:
    """Its name is part of the names of parameters, whose separator is a dot."""
    write_config(tmp_path, MAIL.replace('name: "mail"', 'name: "mail-v1.2"'))
    space = content({"instance_count": [1, 2]})
    space["models"] = {"mail-v1.2": space["models"]["mail"]}
    path = tiny.write_space(tmp_path, space)
    settings = {"mail-v1.2.instance_count": "4", f"mail-v1.2.{PINNED}": "false"}
    model = baseline(open_point(path, settings).search_space)
    assert model.instance_count == 4
    assert model.parameters == ((PINNED.removeprefix("config."), "false"),)
    with pytest.raises(UsageError, match=r"mail-v1 is none of the models, mail-v1\.2"):
        open_point(path, {"mail-v1.instance_count": "4"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config.optimization.input_pinned_memory.enabel": "true"}, "did you mean enable?"),
        ({PINNED: "3"}, f"{PINNED}: must be true or false, got 3"),
        ({"config.max_batch_size": "3"}, "config.max_batch_size: is the parameter"),
        ({"intra_op_threads": "2"}, "mail.intra_op_threads: has no effect on a model of"),
    ],
)
def test_a_wrong_field_on_the_command_line_is_refused(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    write_config(tmp_path)
    path = tiny.write_space(tmp_path, content({}))
    with pytest.raises(UsageError) as caught:
        open_point(path, settings)
    assert str(caught.value).startswith("--set:")
    assert message in str(caught.value)


def test_a_field_that_the_file_does_not_list_can_be_set(tmp_path: Path) -> None:
    space = fixed_at(space_of(tmp_path, {}), {PINNED: "true", "max_queue_delay_us": "7"})
    expected = MAIL.replace("300  #", "7  #") + (
        "optimization {\n  input_pinned_memory {\n    enable: true\n  }\n}\n"
    )
    assert served(tmp_path, space) == expected


@pytest.mark.parametrize(
    ("key", "listed", "message"),
    [
        (
            "config.optimization.input_pinned_memory.enabel",
            [True],
            "config.pbtxt has no field 'enabel' there; did you mean enable?",
        ),
        (PINNED, [True, "perhaps"], "must be true or false"),
        ("config.instance_group.name", ["a"], "instance_group is a list"),
        ("config.max_batch_size", [4], "is the parameter max_batch_size"),
        (
            "config.dynamic_batching.max_queue_delay_microseconds",
            [4],
            "is the parameter max_queue_delay_microseconds",
        ),
        (PINNED, [True, True], "values must be distinct"),
    ],
)
def test_a_wrong_field_in_the_file_is_refused(
    tmp_path: Path, key: str, listed: list[Any], message: str
) -> None:
    write_config(tmp_path)
    path = tiny.write_space(tmp_path, content({key: listed}))
    with pytest.raises(SpaceFileError) as caught:
        open_space(path)
    [mistake] = caught.value.mistakes
    assert key in str(mistake)
    assert message in str(mistake)


def test_fields_of_models_that_this_program_makes(tmp_path: Path) -> None:
    """They are not of repositories alone."""
    listed = {PINNED: ["unchanged", False], "batching": [False]}
    space = open_space(tiny.write_space(tmp_path, tiny.space(parameters=listed)))
    assert baseline(space.search_space).parameters == ()
    assert len(space.search_space) == 2


def test_the_embedded_server_lacks_a_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.commands.hosts.find_embedded_runtime", lambda: None)
    text = MAIL.replace('backend: "python"', 'platform: "tensorrt_plan"')
    space = space_of(tmp_path, {}, text)
    assert isinstance(space.host, EmbeddedHost)
    slot: Slot = local_slot()
    with pytest.raises(RequirementError, match="embedded server has no backend 'tensorrt'"):
        require_host(space, slot)
    assert require_host(space_of(tmp_path / "python", {}), slot) == "embedded"


def test_a_condition_may_name_a_listed_field(tmp_path: Path) -> None:
    listed = {PINNED: [True, False], "instance_count": [1, 2]}
    write_config(tmp_path)
    made = content(listed)
    made["conditions"] = [f"{PINNED} != True or instance_count == 1"]
    space = open_space(tiny.write_space(tmp_path, made)).search_space
    path = PINNED.removeprefix("config.")
    pairs = {(dict(m.parameters).get(path), m.instance_count) for m in _models(space)}
    assert pairs == {(None, 1), (None, 2), ("true", 1), ("false", 1), ("false", 2)}


def test_a_condition_that_names_another_field_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    made = content({PINNED: [False]})
    made["conditions"] = [f"{ORDER} == True"]
    with pytest.raises(SpaceFileError) as caught:
        open_space(tiny.write_space(tmp_path, made))
    [mistake] = map(str, caught.value.mistakes)
    assert "conditions.0: must be a comparison of" in mistake
    assert f"'{ORDER}' is not among the parameters, only {PINNED}" in mistake


def test_a_request_larger_than_the_deployed_batch_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    made = content({"max_batch_size": [8, 32]})
    made["traffic"] = {**made["traffic"], "batch_size": 9}
    with pytest.raises(SpaceFileError) as caught:
        open_space(tiny.write_space(tmp_path, made))
    [mistake] = map(str, caught.value.mistakes)
    assert mistake.endswith("at most the max_batch_size of models.mail as deployed, 8, got 9")


def test_a_version_is_of_the_source_and_of_the_requests(tmp_path: Path) -> None:
    source = {"repository": ".", "model": "mail", "version": 2}
    write_config(tmp_path)
    (tmp_path / "mail" / "2").mkdir()
    space = open_space(tiny.write_space(tmp_path, content({}, source=source)))
    assert (space.models[0].version, space.workload.streams[0].version) == ("2", "2")
    assert space_of(tmp_path / "newest", {}).workload.streams[0].version == ""
    path = tiny.write_space(tmp_path, content({}, source={**source, "version": 3}))
    with pytest.raises(
        UsageError, match=r"source\.version: must be one that .*, got 3; .* serves 2"
    ):
        open_space(path)
    path = tiny.write_space(tmp_path, content({}, source={"onnx": "space.yaml", "version": 3}))
    with pytest.raises(SpaceFileError, match="version: must be given only with repository"):
        open_space(path)
