"""`init --from`: the space file of a deployed model loads as it is, whatever its configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from optimizer.commands.init import find_model
from optimizer.configuration.hardware import Gpu, Hardware
from optimizer.configuration.hosting import ContainerHost, EmbeddedHost
from optimizer.errors import UsageError
from optimizer.export.deployed_space import space_text
from optimizer.files.untrusted_yaml import parse_yaml
from optimizer.space_file.reader import Space, load_space
from optimizer.triton.deployed_config import check_inputs, read_deployed
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.workload.model_spec import RepositorySource
from tests.unit.commands import Commands, Said
from tests.unit.pipelines import STEPS, TOP, write_repository

ON_CPU = Hardware(cores=6, memory_mib=8192)
ON_GPU = Hardware(6, 8192, (Gpu("GPU-1", "NVIDIA A10G", (8, 6), 22_000),))

DEPLOYED = """
backend: "python"
max_batch_size: 16
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MASK" data_type: TYPE_BOOL dims: [ -1 ] },
  { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 3, -1, -1 ] },
  { name: "SCALE" data_type: TYPE_BF16 dims: [ -1 ] },
  { name: "HINT" data_type: TYPE_INT32 dims: [ -1, 2 ] optional: true }
]
output [ { name: "COUNT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""


def deployed(repository: Path, text: str, model: str = "texts") -> RepositorySource:
    (repository / model / "1").mkdir(parents=True)
    (repository / model / "config.pbtxt").write_text(text)
    return RepositorySource(repository, model)


def written(source: RepositorySource, hardware: Hardware = ON_CPU) -> str:
    text = space_text(source, str(source.repository), hardware)
    (source.repository / "space.yaml").write_text(text)
    return text


def loaded(source: RepositorySource, hardware: Hardware = ON_CPU) -> Space:
    """The space as `run` would read it; requests of it fit the deployed configuration."""
    written(source, hardware)
    space = load_space(source.repository / "space.yaml", {}, hardware, read_settings)
    _, config = read_deployed(source.folder)
    check_inputs(config, space.models[-1].payloads)
    return space


def test_the_file_has_the_inputs_and_parameters_of_the_model(tmp_path: Path) -> None:
    source = deployed(tmp_path, DEPLOYED)
    document = parse_yaml(written(source))
    assert document["study"] == "texts"
    assert document["server"] == {"launcher": "embedded"}
    model = document["models"]["texts"]
    assert model["source"] == {"repository": str(tmp_path), "model": "texts"}
    assert "batched" not in model
    assert model["inputs"] == {
        "TEXT": {"data_type": "BYTES", "shape": [1], "values": ["first text", "second text"]},
        "MASK": {"data_type": "BOOL", "shape": ["MASK_0"], "values": [False, True]},
        "IMAGE": {
            "data_type": "UINT8",
            "shape": [3, "IMAGE_1", "IMAGE_2"],
            "minimum": 0,
            "maximum": 1,
        },
        # The same dims as MASK, and so the same name.
        "SCALE": {"data_type": "BF16", "shape": ["MASK_0"], "minimum": 0, "maximum": 1},
    }
    assert set(model["dimensions"]) == {"MASK_0", "IMAGE_1", "IMAGE_2"}
    assert document["parameters"] == {
        "batching": [True, False],
        "max_batch_size": [2, 4, 8, 16],
        "max_queue_delay_microseconds": [0, 500, 2000],
        "instance_count": [1, 2, 4, 6],
    }
    space = loaded(source)
    assert isinstance(space.host, EmbeddedHost)
    assert len(space.search_space) == (1 + 4 * 3) * 4


def test_comments_name_what_a_person_decides_and_the_optional_input(tmp_path: Path) -> None:
    text = written(deployed(tmp_path, DEPLOYED))
    for key in ("values", "minimum", "dimensions", "demand_per_second", "limit", "price"):
        at = re.search(rf"^ *{key}:", text, re.MULTILINE)
        assert at is not None, key
        beside = text[: text.index("\n", at.start())].rpartition("\n\n")[2]
        assert "Decide: " in beside, key
    assert "# HINT:\n      #   data_type: INT32\n      #   shape: [HINT_0, 2]\n" in text


@pytest.mark.parametrize(
    ("config", "parameters", "absent"),
    [
        ("max_batch_size: 0", {"instance_count"}, "instance groups"),
        ("max_batch_size: 1", {"instance_count"}, "max_batch_size is 0"),
        (
            "max_batch_size: 6 instance_group [ { count: 1 }, { count: 2 } ]",
            {"batching", "max_batch_size", "max_queue_delay_microseconds"},
            "max_batch_size is 0",
        ),
        ("max_batch_size: 0 instance_group [ { count: 1 }, { count: 2 } ]", set(), "batching:"),
    ],
)
def test_parameters_without_effect_are_left_out(
    tmp_path: Path, config: str, parameters: set[str], absent: str
) -> None:
    source = deployed(
        tmp_path, f'{config} input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 4 ] }} ]'
    )
    text = written(source)
    document = parse_yaml(text)
    assert set(document["parameters"]) == parameters
    assert document["models"]["texts"].get("batched", True) == ("max_batch_size: 0" not in config)
    assert absent not in text
    assert len(loaded(source).search_space) > 0


def test_a_model_with_optional_inputs_only_is_sent_all_of_them(tmp_path: Path) -> None:
    config = 'input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] optional: true } ]'
    space = loaded(deployed(tmp_path, config))
    assert [tensor.name for tensor in space.models[0].payloads.tensors] == ["X"]


@pytest.mark.parametrize(
    ("config", "gpus", "counts"),
    [
        ('platform: "onnxruntime_onnx"', 1, [1, 2, 3, 4]),
        ('platform: "onnxruntime_onnx" instance_group [ { kind: KIND_CPU } ]', 0, [1, 2, 4, 6]),
    ],
)
def test_other_backends_and_gpus_need_a_container(
    tmp_path: Path, config: str, gpus: int, counts: list[int]
) -> None:
    source = deployed(
        tmp_path, f'{config} input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 4 ] }} ]'
    )
    space = loaded(source, ON_GPU)
    assert isinstance(space.host, ContainerHost)
    assert len(space.search_space.hardware.gpus) == gpus
    assert parse_yaml(written(source, ON_GPU))["parameters"]["instance_count"] == counts


NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=40
) | st.sampled_from(
    ["a: b", "- a", '"', "'", "a #b", "{a}", "[a", "<<", "=", "no", "1", "~", "length", "a.b", "*x"]
)
TYPES = st.sampled_from([n for n in DataType.values() if n != DataType.TYPE_INVALID])


@settings(max_examples=60)
@given(
    model=NAMES.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
    inputs=st.dictionaries(
        NAMES,
        st.tuples(TYPES, st.lists(st.sampled_from([-1, 1, 7]), max_size=3), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    largest=st.integers(0, 70),
)
def test_the_file_loads_whatever_the_names_and_types(
    tmp_path_factory: pytest.TempPathFactory,
    model: str,
    inputs: dict[str, tuple[int, list[int], bool]],
    largest: int,
) -> None:
    config = ModelConfig(backend="python", max_batch_size=largest)
    for name, (data_type, dims, optional) in inputs.items():
        config.input.add(name=name, data_type=data_type, dims=dims, optional=optional)
    repository = tmp_path_factory.mktemp("models")
    source = deployed(repository, text_format.MessageToString(config), model)
    space = loaded(source)
    assert space.models[0].source == source
    sent = {tensor.name for tensor in space.models[0].payloads.tensors}
    needed = {name for name, (_, _, optional) in inputs.items() if not optional}
    assert sent == (needed or set(inputs))


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ("sequence_batching { }", "sequence_batching: requests of a stateful model"),
        ("max_batch_size: many", "is not a Triton model configuration"),
    ],
)
def test_a_model_that_cannot_be_tuned_is_refused(
    tmp_path: Path, optimizer: Commands, config: str, rule: str
) -> None:
    source = deployed(tmp_path / "models", config)
    said = optimizer("init", "--from", source.repository)
    assert said.code == 2
    assert said.err.startswith(f"error: {source.folder / 'config.pbtxt'}")
    assert rule in said.err
    assert not Path("space.yaml").exists()


NOT_COMPLETE = {
    'backend: "onnxruntime"': "the embedded server has no backend 'onnxruntime', only python",
    'backend: "onnxruntime" max_batch_size: 2': "the embedded server has no backend 'onnxruntime'",
}


@pytest.mark.parametrize("config", NOT_COMPLETE)
def test_a_backend_that_nobody_can_ask_is_what_the_machine_lacks(
    tmp_path: Path, optimizer: Commands, config: str
) -> None:
    said = optimizer("init", "--from", deployed(tmp_path / "models", config).repository)
    assert said.code == 3
    assert NOT_COMPLETE[config] in said.err
    assert "input, output, and the server could not complete it" in said.err
    assert "write a complete one" in said.err
    assert not Path("space.yaml").exists()


def test_a_file_that_would_not_load_is_not_left(tmp_path: Path, optimizer: Commands) -> None:
    config = DEPLOYED.replace('"HINT"', '"a/b"').replace(" optional: true", "")
    said = optimizer("init", "--from", deployed(tmp_path / "models", config).repository)
    assert said.code == 2
    assert "models/texts: no space file can describe it" in said.err
    assert "models.texts.inputs.a/b" in said.err
    assert not Path("space.yaml").exists()


@pytest.mark.parametrize("name", ["space.yaml", "my space.yaml"])
def test_the_comment_names_the_file_itself(tmp_path: Path, optimizer: Commands, name: str) -> None:
    repository = deployed(tmp_path / "models", DEPLOYED).repository
    quoted = "'my space.yaml'" if " " in name else name
    for arguments in ([], ["--from", repository]):
        assert optimizer("init", name, *arguments).code == 0
        assert f"#     python -m optimizer run {quoted}\n" in Path(name).read_text()
        Path(name).unlink()


def test_several_models_are_listed(optimizer: Commands) -> None:
    for model in ("second", "first"):
        deployed(Path("models"), DEPLOYED, model)
    (Path("models") / "notes").mkdir()
    assert optimizer("init", "--from", "models") == Said(
        2,
        "",
        "error: --from: models contains several models; give one of\n"
        "  models/first\n  models/second\n",
    )
    said = optimizer("init", "sub.yaml", "--from", "models/second")
    assert said == Said(
        0, "wrote sub.yaml\nedit it, then run: python -m optimizer run sub.yaml\n", ""
    )
    source = parse_yaml(Path("sub.yaml").read_text())["models"]["second"]["source"]
    assert source == {"repository": "models", "model": "second"}


def test_a_relative_repository_is_relative_to_the_written_file(optimizer: Commands) -> None:
    deployed(Path("models"), DEPLOYED)
    Path("spaces").mkdir()
    assert optimizer("init", "spaces/mine.yaml", "--from", "models").code == 0
    source = parse_yaml(Path("spaces/mine.yaml").read_text())["models"]["texts"]["source"]
    assert source == {"repository": "../models", "model": "texts"}


def test_the_folder_must_hold_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a model repository, or REPOSITORY/MODEL"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"contains no model: each is a folder with config\.pbtxt"):
        find_model(tmp_path)


def test_the_schema_is_of_no_repository(optimizer: Commands) -> None:
    said = optimizer("init", "--schema", "--from", "models")
    assert said == Said(2, "", "error: give one of --from and --schema, not both\n")


def test_an_ensemble_gets_parameters_of_its_steps(tmp_path: Path) -> None:
    source = RepositorySource(write_repository(tmp_path), TOP)
    text = written(source)
    assert "  launcher: embedded" in text
    assert "  tokenizer.batching: [true, false]\n  tokenizer.instance_count: [1, 2, 4, 6]\n" in text
    space = loaded(source)
    searched = {p.key for p in space.search_space.parameters if len(p.values) > 1}
    assert searched == {f"{n}.{p}" for n in STEPS for p in ("batching", "instance_count")}
