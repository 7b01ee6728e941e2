"""The configuration of a deployed model: what is read of it, changed in it, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import Limits
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    QueuePolicy,
)
from optimizer.errors import UsageError
from optimizer.triton.deployed_config import (
    backend_of,
    check_inputs,
    deployed_outputs,
    deployed_values,
    overlay,
    read_deployed,
    served_text,
)
from optimizer.triton.deployed_pipeline import read_settings
from optimizer.triton.model_config import wrong_field
from optimizer.workload.model_spec import RepositorySource
from optimizer.workload.request_sizes import Dimension, LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec
from tests.unit.repositories import MAIL, config_of, write_config

SPEC = ArtifactSpec("mail", "repository", "repository", "as_deployed")
AS_DEPLOYED = ModelServing(
    "mail", SPEC, 8, Batching((4, 8), 300), (InstanceGroup(count=2, threads=1),)
)
"""As `MAIL` is served."""

IDS = TensorSpec("IDS", "INT32", ("rows", 4), 0, 9)
ROWS = Dimension("rows", LengthDistribution((1, 5), (1.0, 1.0)))


def after(model: ModelServing, text: str = MAIL) -> ModelConfig:
    return overlay(config_of(text), model)


def changed(**fields: object) -> ModelServing:
    return replace(AS_DEPLOYED, **fields)  # type: ignore[arg-type]


def test_what_a_configuration_holds_is_read_as_values_of_parameters() -> None:
    assert deployed_values(config_of(MAIL)) == {
        "batching": True,
        "max_batch_size": 8,
        "preferred_batch_sizes": (4, 8),
        "max_queue_delay_us": 300,
        "instance_count": 2,
        "response_cache": False,
        "max_queue_size": "off",
        "default_timeout_microseconds": "off",
        "timeout_action": "reject",
    }


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("max_batch_size: 0", "max_batch_size", 1),
        ("max_batch_size: 0", "batching", False),
        ("max_batch_size: 4 dynamic_batching { }", "batching", True),
        ("max_batch_size: 4 dynamic_batching { }", "preferred_batch_sizes", "none"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 4 }",
            "preferred_batch_sizes",
            "none",
        ),
        ("max_batch_size: 4", "instance_count", 1),
        ("instance_group { kind: KIND_CPU }", "instance_count", 1),
        ("instance_group [ { count: 2 }, { count: 3 } ]", "instance_count", 5),
    ],
)
def test_what_is_left_out_has_the_value_that_triton_takes(
    text: str, name: str, value: object
) -> None:
    assert deployed_values(config_of(text))[name] == value


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ('backend: "python"', "python"),
        ('platform: "tensorrt_plan"', "tensorrt"),
        ('platform: "onnxruntime_onnx"', "onnxruntime"),
        ('platform: "pytorch_libtorch"', "pytorch"),
        ('platform: "tensorflow_savedmodel"', "tensorflow"),
        ('name: "a"', ""),
    ],
)
def test_the_backend_is_named_or_follows_from_the_platform(text: str, backend: str) -> None:
    assert backend_of(config_of(text)) == backend


def test_nothing_changes_where_nothing_differs(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    text, config = served_text(folder, AS_DEPLOYED)
    assert text == MAIL
    assert config == config_of(MAIL)


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        (changed(max_batch_size=4, batching=Batching((4,), 300)), None, None),
        (changed(batching=Batching((4, 8), 0)), "300  #", "0  #"),
        (changed(batching=Batching((4, 8), 900)), "300  #", "900  #"),
        (changed(batching=Batching((2, 4, 8), 300)), "[ 8, 4 ]", "[ 2, 4, 8 ]"),
        (changed(batching=Batching((), 300)), "  preferred_batch_size: [ 8, 4 ]\n", ""),
        (
            changed(max_batch_size=16, batching=Batching((4, 8), 300)),
            "max_batch_size: 8",
            "max_batch_size: 16",
        ),
        (changed(groups=(InstanceGroup(count=5),)), "KIND_CPU count: 2", "KIND_CPU count: 5"),
        (
            changed(max_batch_size=1, batching=None),
            MAIL[MAIL.index("dynamic_batching") : MAIL.index("parameters")],
            "",
        ),
        (
            changed(parameters=(("dynamic_batching.preserve_ordering", "false"),)),
            "preserve_ordering: true",
            "preserve_ordering: false",
        ),
        (
            changed(parameters=(("parameters.greeting.string_value", '"hi"'),)),
            '"hello"',
            '"hi"',
        ),
        (changed(name="post"), 'name: "mail"', 'name: "post"'),
    ],
)
def test_a_parameter_changes_its_own_field(
    tmp_path: Path, model: ModelServing, old: str | None, new: str | None
) -> None:
    text, config = served_text(write_config(tmp_path), model)
    if old is None or new is None:
        expected = MAIL.replace("max_batch_size: 8", "max_batch_size: 4").replace(
            "[ 8, 4 ]", "[ 4 ]"
        )
        assert config_of(text) == config
        assert deployed_values(config) == deployed_values(config_of(expected))
        return
    assert MAIL.count(old) == 1
    assert text == MAIL.replace(old, new)


def test_a_field_that_the_file_lacks_is_added(tmp_path: Path) -> None:
    plain = 'backend: "python"\nmax_batch_size: 8\n'
    folder = write_config(tmp_path, plain)
    path = "optimization.input_pinned_memory.enable"
    batched = changed(batching=Batching((), 0), groups=(InstanceGroup(),))
    assert served_text(folder, batched)[0] == f"{plain}dynamic_batching {{\n}}\n"
    alone = changed(max_batch_size=1, batching=None, parameters=((path, "true"),))
    config = served_text(folder, alone)[1]
    assert config.optimization.input_pinned_memory.enable
    assert [group.count for group in config.instance_group] == [2]


def test_a_preference_for_the_largest_batch_follows_the_largest_batch() -> None:
    """Triton refuses a preferred batch size above max_batch_size."""
    text = "max_batch_size: 8 dynamic_batching { preferred_batch_size: 8 }"
    one = (InstanceGroup(),)
    assert after(changed(batching=Batching(), groups=one), text) == config_of(text)
    smaller = after(changed(max_batch_size=4, batching=Batching(), groups=one), text)
    assert list(smaller.dynamic_batching.preferred_batch_size) == []


def test_a_batcher_that_can_join_nothing_stays(tmp_path: Path) -> None:
    """Its queue policy holds for single requests too."""
    text = (
        'backend: "python"\nmax_batch_size: 1\n'
        "dynamic_batching { default_queue_policy { max_queue_size: 7 } }\n"
    )
    alone = changed(max_batch_size=1, batching=None, groups=(InstanceGroup(),))
    assert served_text(write_config(tmp_path, text), alone)[0] == text


def test_the_batch_size_stays_where_batching_goes() -> None:
    """Clients may send whole batches to a model whose requests the server does not join."""
    assert after(changed(max_batch_size=1, batching=None)).max_batch_size == 8


BOUNDED = """
max_batch_size: 8
dynamic_batching {
  default_queue_policy {
    timeout_action: DELAY
    default_timeout_microseconds: 9000
    allow_timeout_override: true
    max_queue_size: 7
  }
}
"""


def test_a_queue_policy_is_read_as_parameters() -> None:
    values = deployed_values(config_of(BOUNDED))
    assert values["max_queue_size"] == 7
    assert values["default_timeout_microseconds"] == 9000
    assert values["timeout_action"] == "delay"
    untimed = deployed_values(config_of(BOUNDED.replace("9000", "0")))
    assert untimed["default_timeout_microseconds"] == "off"
    assert untimed["timeout_action"] == "reject", "without a timeout there is no action"


def test_a_queue_policy_is_changed_and_its_other_fields_stay() -> None:
    one = (InstanceGroup(),)
    wanted = Batching(queue_policy=QueuePolicy(max_queue_size=7, timeout_us=500))
    policy = after(changed(batching=wanted, groups=one), BOUNDED).dynamic_batching
    assert policy.default_queue_policy.default_timeout_microseconds == 500
    assert policy.default_queue_policy.timeout_action == policy.default_queue_policy.REJECT
    assert policy.default_queue_policy.allow_timeout_override
    off = after(changed(batching=Batching(), groups=one), BOUNDED).dynamic_batching
    assert off.default_queue_policy.max_queue_size == 0
    assert off.default_queue_policy.default_timeout_microseconds == 0


@st.composite
def deployed_configs(draw: st.DrawFn) -> ModelConfig:
    config = ModelConfig(backend="python", max_batch_size=draw(st.integers(0, 9)))
    if draw(st.booleans()):
        config.name = "mail"
    for count in draw(st.lists(st.integers(0, 4), max_size=3)):
        config.instance_group.add(count=count, kind=draw(st.integers(0, 2)))
    if draw(st.booleans()) and config.max_batch_size:
        batcher = config.dynamic_batching
        batcher.SetInParent()
        sizes = st.lists(st.integers(1, config.max_batch_size), max_size=3, unique=True)
        batcher.preferred_batch_size.extend(draw(sizes))
        batcher.max_queue_delay_microseconds = draw(st.integers(0, 10**9))
        batcher.preserve_ordering = draw(st.booleans())
        policy = batcher.default_queue_policy
        if draw(st.booleans()):
            policy.max_queue_size = draw(st.integers(0, 9))
            policy.default_timeout_microseconds = draw(st.sampled_from([0, 7]))
            policy.timeout_action = draw(st.integers(0, 1))
            policy.allow_timeout_override = draw(st.booleans())
    if draw(st.booleans()):
        config.response_cache.enable = True
    return config


@given(deployed_configs())
def test_the_baseline_of_any_configuration_is_the_configuration(
    tmp_path_factory: pytest.TempPathFactory, config: ModelConfig
) -> None:
    folder = tmp_path_factory.mktemp("model")
    text = text_format.MessageToString(config)
    (folder / "config.pbtxt").write_text(text)
    settings = read_settings(RepositorySource(folder.parent, folder.name))
    space = SearchSpace(settings.parameters("mail", {}), Hardware(2, 24_000), Limits())
    [model] = space.config(space.baseline).models
    assert served_text(folder, model)[0] == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sequence_batching { }", "sequence_batching: requests of a stateful model"),
        (
            "model_transaction_policy { decoupled: true }",
            "model_transaction_policy.decoupled: a request of a decoupled model",
        ),
    ],
)
def test_models_that_cannot_be_tuned_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    folder = write_config(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_settings(RepositorySource(tmp_path, "mail"))
    assert str(caught.value).startswith(f"{folder / 'config.pbtxt'}: {reason}")
    assert "use " in str(caught.value) or "tune " in str(caught.value), "what to do instead"


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy { specific { versions: [ 2, 3 ] } }", [2]),
    ],
)
def test_a_version_that_is_not_served_is_refused(
    tmp_path: Path, policy: str, served: list[int]
) -> None:
    folder = tmp_path / "mail"
    for name in ("1", "2", "10", "011", "configs"):
        (folder / name).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(f"{policy} max_batch_size: 4")
    source = RepositorySource(tmp_path, "mail")
    read_settings(source)
    for version in (1, 2, 3, 10):
        if version in served:
            read_settings(replace(source, version=version))
            continue
        listed = ", ".join(map(str, served))
        with pytest.raises(UsageError, match=rf"source\.version: .*, got {version};.* {listed}$"):
            read_settings(replace(source, version=version))


@pytest.mark.parametrize("content", [b"max_batch: 8", b"\xff\xfe", b"input {" * 2000])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.pbtxt").write_bytes(content)
    with pytest.raises(UsageError, match="is not a Triton model configuration"):
        read_deployed(tmp_path)


def mistakes(text: str, payloads: Payloads) -> str:
    with pytest.raises(UsageError) as caught:
        check_inputs(config_of(text), payloads)
    return str(caught.value)


def test_inputs_that_fit_are_accepted() -> None:
    check_inputs(config_of(MAIL), Payloads((IDS,), dimensions=(ROWS,)))
    optional = 'input [ { name: "EXTRA" data_type: TYPE_BOOL dims: 1 optional: true } ]'
    check_inputs(config_of(MAIL + optional), Payloads((IDS,), dimensions=(ROWS,)))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (replace(IDS, name="ID"), "ID: the model has no such input; it has IDS"),
        (replace(IDS, name="ID"), "IDS: the model needs this input, and the space file does not"),
        (replace(IDS, data_type="INT64"), "IDS: the model takes INT32, got INT64"),
        (
            replace(IDS, shape=("rows", 5)),
            "IDS: the model takes [-1, 4] (-1 is any size), got ['rows', 5]",
        ),
        (replace(IDS, shape=(4, "rows")), "IDS: the model takes [-1, 4]"),
        (replace(IDS, shape=("rows",)), "IDS: the model takes [-1, 4]"),
    ],
)
def test_an_input_that_does_not_fit_is_named(tensor: TensorSpec, message: str) -> None:
    assert message in mistakes(MAIL, Payloads((tensor,), dimensions=(ROWS,)))


def test_every_mistake_of_the_inputs_is_named_at_once() -> None:
    wrong = Payloads((replace(IDS, data_type="FP64", shape=(3,)),), batched=False)
    text = mistakes(MAIL, wrong)
    assert "IDS: the model takes INT32, got FP64" in text
    assert "IDS: the model takes [-1, 4] (-1 is any size), got [3]" in text
    assert "batched: must be true: the model's max_batch_size is 8" in text


def test_a_batch_axis_that_the_model_lacks_is_named() -> None:
    text = MAIL.replace("max_batch_size: 8", "max_batch_size: 0")
    wrong = mistakes(text, Payloads((IDS,), dimensions=(ROWS,)))
    assert "batched: must be false: the model's max_batch_size is 0" in wrong


def test_an_input_without_a_data_type_is_named() -> None:
    text = MAIL.replace("data_type: TYPE_INT32 ", "")
    wrong = mistakes(text, Payloads((IDS,), dimensions=(ROWS,)))
    assert "IDS: data_type must be given, got TYPE_INVALID" in wrong


def test_outputs_are_all_or_those_that_are_named() -> None:
    config = config_of(MAIL + 'output { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }')
    assert [each.name for each in deployed_outputs(config, [])] == ["SCORES", "TEXT"]
    [text] = deployed_outputs(config, ["TEXT"])
    assert (text.data_type, text.shape) == ("BYTES", (-1,))
    with pytest.raises(UsageError, match="has no output 'LOGITS'; it has SCORES, TEXT"):
        deployed_outputs(config, ["LOGITS"])
    with pytest.raises(UsageError, match="output X: data_type must be given"):
        deployed_outputs(config_of('output { name: "X" }'), [])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimization.input_pinned_memory.enable", False),
        ("parameters.FORCE_CPU_ONLY_INPUT_TENSORS.string_value", "yes"),
        ("dynamic_batching.default_queue_policy.max_queue_size", 4),
        ("optimization.priority", "PRIORITY_MAX"),
    ],
)
def test_a_field_of_the_configuration_by_its_path(path: str, value: object) -> None:
    assert wrong_field(path, value) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimisation.cuda", True, "no field 'optimisation' there; did you mean optimization?"),
        ("optimization.priority.most", 1, "no field 'most' there"),
        ("optimization.input_pinned_memory.enable", 3, "must be true or false"),
        ("optimization.cuda", True, "must be the path of one of its fields, graphs"),
        ("max_batch_size.x", 1, "no field 'x' there"),
        ("instance_group.name", "a", "instance_group is a list, whose entries have no path"),
        ("parameters.x.strings", "a", "no field 'strings' there; did you mean string_value?"),
    ],
)
def test_a_path_that_is_no_field_or_a_value_that_does_not_fit(
    path: str, value: object, message: str
) -> None:
    assert message in (wrong_field(path, value) or "")


def test_the_base_is_not_changed() -> None:
    """The next configuration is laid over it too."""
    base = config_of(MAIL)
    overlay(base, changed(max_batch_size=1, batching=None))
    assert base == config_of(MAIL)
