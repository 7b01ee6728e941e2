from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from tritonclient.grpc import model_config_pb2

from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
)
from optimizer.files.shipped import shipped
from optimizer.triton.model_config import differences, merge_fields, model_config, to_text
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import OutputTensor, Payloads, TensorSpec
from tests.unit.strategies import models

GOLDEN = Path(__file__).parents[1] / "golden" / "config.pbtxt"
TEMPLATE = shipped("model_repository_templates") / "python" / "config.pbtxt"
PAYLOADS = Payloads(
    (
        TensorSpec("input_ids", "INT64", (None,), 5, 99),
        TensorSpec("pixels", "FP32", (3, None), 0, 1),
    ),
    LengthDistribution((16, 60), (0.5, 0.5)),
)
OUTPUT = OutputTensor("logits", "FP32", (2,))
MODEL = ModelServing(
    name="bert",
    artifact=ArtifactSpec("bert", "openvino", "python", "int8"),
    max_batch_size=16,
    batching=Batching((8, 16), max_queue_delay_us=500),
    groups=(InstanceGroup("KIND_CPU", 2, (), 1),),
    padding=(32, 64),
    warmup_batch_sizes=(1, 16),
    parameters=(("parameters.num_streams.string_value", '"1"'),),
)

servable = models.filter(
    lambda model: bool(model.groups) and model.artifact.backend != "repository"
)


def built(model: ModelServing) -> model_config_pb2.ModelConfig:
    return model_config(model, PAYLOADS, [OUTPUT], TEMPLATE)


def copy_of(config: model_config_pb2.ModelConfig) -> model_config_pb2.ModelConfig:
    copied = model_config_pb2.ModelConfig()
    copied.CopyFrom(config)
    return copied


def test_the_whole_file() -> None:
    assert to_text(built(MODEL)) == GOLDEN.read_text()


@settings(max_examples=50)
@given(servable)
def test_the_text_says_what_the_message_says(model: ModelServing) -> None:
    config = built(model)
    assert text_format.Parse(to_text(config), model_config_pb2.ModelConfig()) == config


@settings(max_examples=50)
@given(servable)
def test_the_message_says_what_was_asked(model: ModelServing) -> None:
    config = built(model)
    assert (config.name, config.max_batch_size) == (model.name, model.max_batch_size)
    assert config.backend == "python"
    assert [(g.count, tuple(g.gpus)) for g in config.instance_group] == [
        (g.count, g.logical_gpus) for g in model.groups
    ]
    assert config.HasField("dynamic_batching") == (model.batching is not None)
    if model.batching is not None:
        batcher = config.dynamic_batching
        assert tuple(batcher.preferred_batch_size) == model.batching.preferred_batch_sizes
        assert batcher.max_queue_delay_microseconds == model.batching.max_queue_delay_us
        policy, wanted = batcher.default_queue_policy, model.batching.queue_policy
        assert policy.max_queue_size == wanted.max_queue_size
        assert policy.default_timeout_microseconds == wanted.timeout_us
        assert policy.TimeoutAction.Name(policy.timeout_action) == wanted.timeout_action.upper()
    assert tuple(w.batch_size for w in config.model_warmup) == model.warmup_batch_sizes
    said = {name: value.string_value for name, value in config.parameters.items()}
    hosted = {
        "runtime": model.artifact.runtime,
        "precision": model.artifact.precision,
        "intra_op_threads": str(model.groups[0].threads),
    }
    own = hosted if model.artifact.backend == "python" else {}
    further = {path.split(".")[1]: json.loads(text) for path, text in model.parameters}
    assert said == {**own, **further}
    assert config.optimization.cuda.graphs == model.cuda_graphs
    assert [len(group.rate_limiter.resources) for group in config.instance_group] == [
        int(model.rate_limited) for _ in model.groups
    ]


@settings(max_examples=50)
@given(servable)
def test_what_was_asked_does_not_differ_from_itself(model: ModelServing) -> None:
    running = built(model)
    if model.batching is not None and not model.batching.preferred_batch_sizes:
        running.dynamic_batching.preferred_batch_size.append(model.max_batch_size)
    assert differences(built(model), running) == []


def test_warmup_pads_the_longest_request() -> None:
    (one, largest) = built(MODEL).model_warmup
    assert (one.batch_size, largest.batch_size) == (1, 16)
    assert [list(one.inputs[name].dims) for name in ("input_ids", "pixels")] == [[64], [3, 64]]
    assert all(each.zero_data for each in one.inputs.values())


@pytest.mark.parametrize(
    ("choices", "warmed_up"), [((0,), True), ((0, 1), True), ((16000,), False)]
)
def test_zeros_warm_up_no_model_that_never_gets_a_zero(
    choices: tuple[int, ...], warmed_up: bool
) -> None:
    rate = TensorSpec("rate", "INT64", (1,), choices=choices)
    config = model_config(MODEL, Payloads((rate,)), [OUTPUT], TEMPLATE)
    assert bool(config.model_warmup) == warmed_up


def test_cuda_graphs_are_recorded_at_every_length_that_is_sent() -> None:
    asked = replace(MODEL, padding=(32,), cuda_graphs=True)
    cuda = built(asked).optimization.cuda
    assert cuda.graphs
    shapes = [
        (spec.batch_size, list(spec.input["input_ids"].dim), list(spec.input["pixels"].dim))
        for spec in cuda.graph_spec
    ]
    assert shapes == [(b, [n], [3, n]) for b in range(1, 17) for n in (32, 60)]
    assert not any(spec.HasField("graph_lower_bound") for spec in cuda.graph_spec)


def test_cuda_graphs_are_recorded_for_every_batch_that_can_occur() -> None:
    def sizes(model: ModelServing, payloads: Payloads = PAYLOADS) -> list[int]:
        config = model_config(replace(model, cuda_graphs=True), payloads, [OUTPUT], TEMPLATE)
        return [spec.batch_size for spec in config.optimization.cuda.graph_spec]

    merging = replace(MODEL, padding=(), batching=Batching())
    assert sizes(merging) == list(range(1, 17))
    assert sizes(replace(merging, batching=None, max_batch_size=4)) == [4]
    # Triton refuses any other batch than 0 where max_batch_size is 0.
    assert sizes(replace(merging, batching=None), replace(PAYLOADS, batched=False)) == [0]


def test_a_template_that_is_none_is_named(tmp_path: Path) -> None:
    template = tmp_path / "config.pbtxt"
    template.write_text('backend: "python"\nbackened: "x"\n')
    with pytest.raises(ValueError, match=f"{template} is not a Triton model configuration: 2:1 : "):
        model_config(MODEL, PAYLOADS, [OUTPUT], template)


def test_a_template_gives_what_is_the_same_for_every_model(tmp_path: Path) -> None:
    template = tmp_path / "config.pbtxt"
    template.write_text('backend: "other"\nmodel_transaction_policy { decoupled: true }\n')
    config = model_config(MODEL, PAYLOADS, [OUTPUT], template)
    assert config.backend == "other"
    assert config.model_transaction_policy.decoupled


def set_delay(config: model_config_pb2.ModelConfig) -> None:
    config.dynamic_batching.max_queue_delay_microseconds = 0


def fewer_preferred(config: model_config_pb2.ModelConfig) -> None:
    del config.dynamic_batching.preferred_batch_size[:]


def other_preferred(config: model_config_pb2.ModelConfig) -> None:
    config.dynamic_batching.preferred_batch_size[0] = 4


def no_batcher(config: model_config_pb2.ModelConfig) -> None:
    config.ClearField("dynamic_batching")


def smaller_batch(config: model_config_pb2.ModelConfig) -> None:
    config.max_batch_size = 8


def one_instance(config: model_config_pb2.ModelConfig) -> None:
    config.instance_group[0].count = 1


def on_gpu(config: model_config_pb2.ModelConfig) -> None:
    config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_GPU


def two_groups(config: model_config_pb2.ModelConfig) -> None:
    config.instance_group.add(name="second", count=1)


def other_threads(config: model_config_pb2.ModelConfig) -> None:
    config.parameters["intra_op_threads"].string_value = "2"


def no_threads(config: model_config_pb2.ModelConfig) -> None:
    del config.parameters["intra_op_threads"]


def other_type(config: model_config_pb2.ModelConfig) -> None:
    config.input[0].data_type = model_config_pb2.TYPE_INT32


def other_shape(config: model_config_pb2.ModelConfig) -> None:
    config.output[0].dims[0] = 3


def with_cache(config: model_config_pb2.ModelConfig) -> None:
    config.response_cache.enable = True


def no_warmup(config: model_config_pb2.ModelConfig) -> None:
    del config.model_warmup[:]


CHANGES = [
    (
        set_delay,
        "dynamic_batching.max_queue_delay_microseconds: requested 500, the server runs 0",
    ),
    (
        fewer_preferred,
        "dynamic_batching.preferred_batch_size: requested [8, 16], the server runs None",
    ),
    (
        other_preferred,
        "dynamic_batching.preferred_batch_size[0]: requested 8, the server runs 4",
    ),
    (
        no_batcher,
        "dynamic_batching: requested {'preferred_batch_size': [8, 16], "
        "'max_queue_delay_microseconds': '500'}, the server runs None",
    ),
    (smaller_batch, "max_batch_size: requested 16, the server runs 8"),
    (one_instance, "instance_group[0].count: requested 2, the server runs 1"),
    (on_gpu, "instance_group[0].kind: requested KIND_CPU, the server runs KIND_GPU"),
    (
        two_groups,
        "instance_group: requested [{'count': 2, 'kind': 'KIND_CPU'}], the server runs "
        "[{'count': 2, 'kind': 'KIND_CPU'}, {'name': 'second', 'count': 1}]",
    ),
    (other_threads, "parameters.intra_op_threads.string_value: requested 1, the server runs 2"),
    (
        no_threads,
        "parameters.intra_op_threads: requested {'string_value': '1'}, the server runs None",
    ),
    (other_type, "input[0].data_type: requested TYPE_INT64, the server runs TYPE_INT32"),
    (other_shape, "output[0].dims[0]: requested 2, the server runs 3"),
    (with_cache, "response_cache.enable: requested False, the server runs True"),
]


@pytest.mark.parametrize(("change", "line"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_a_change_is_one_line(
    change: Callable[[model_config_pb2.ModelConfig], None], line: str
) -> None:
    asked = built(MODEL)
    running = copy_of(asked)
    change(running)
    assert differences(asked, running) == [line]


def test_every_change_is_reported() -> None:
    asked = built(MODEL)
    running = copy_of(asked)
    for change in (smaller_batch, one_instance, no_warmup):
        change(running)
    fields = [line.partition(":")[0] for line in differences(asked, running)]
    assert sorted(fields) == ["instance_group[0].count", "max_batch_size", "model_warmup"]


def test_what_the_server_fills_in_is_no_difference() -> None:
    asked = built(MODEL)
    running = copy_of(asked)
    running.default_model_filename = "model.py"
    running.version_policy.latest.num_versions = 1
    running.instance_group[0].name = "bert_0"
    running.optimization.input_pinned_memory.enable = True
    running.parameters["of the server"].string_value = "its own"
    assert differences(asked, running) == []


EMPTY = ModelServing(MODEL.name, MODEL.artifact, 16, Batching((), 0))


@pytest.mark.parametrize(
    ("preferred", "lines"),
    [
        ([16], []),
        ([8], ["dynamic_batching.preferred_batch_size[0]: requested 16, the server runs 8"]),
        (
            [8, 16],
            ["dynamic_batching.preferred_batch_size: requested [16], the server runs [8, 16]"],
        ),
    ],
)
def test_no_preference_is_run_as_a_preference_for_the_largest_batch(
    preferred: list[int], lines: list[str]
) -> None:
    running = built(EMPTY)
    running.dynamic_batching.preferred_batch_size.extend(preferred)
    assert differences(built(EMPTY), running) == lines


def test_a_delay_that_nobody_asked_for_is_a_difference() -> None:
    running = built(EMPTY)
    running.dynamic_batching.preferred_batch_size.append(16)
    running.dynamic_batching.max_queue_delay_microseconds = 100
    assert differences(built(EMPTY), running) == [
        "dynamic_batching.max_queue_delay_microseconds: requested 0, the server runs 100"
    ]


def test_a_batcher_that_nobody_asked_for_is_a_difference() -> None:
    asked = built(ModelServing(MODEL.name, MODEL.artifact))
    running = copy_of(asked)
    running.dynamic_batching.preferred_batch_size.append(4)
    assert differences(asked, running) == [
        "dynamic_batching: requested none, the server runs {'preferred_batch_size': [4]}"
    ]


@pytest.mark.parametrize(
    ("path", "default", "other"),
    [
        ("optimization.input_pinned_memory.enable", False, True),
        ("dynamic_batching.default_queue_policy.max_queue_size", 0, 4),
        ("dynamic_batching.priority_queue_policy.2.timeout_action", "REJECT", "DELAY"),
        ("parameters.greeting.string_value", "", "hello"),
    ],
)
def test_a_field_that_is_set_to_its_default_is_compared(
    path: str, default: object, other: object
) -> None:
    """A message leaves it out, and the server's own value may be another one."""
    asked = built(MODEL)
    merge_fields(asked, [(path, json.dumps(default))])
    running = copy_of(asked)
    assert differences(asked, running, [path]) == []
    merge_fields(running, [(path, json.dumps(other))])
    assert differences(asked, running, [path]) == [
        f"{path}: requested {default}, the server runs {other}"
    ]
    assert differences(running, asked, [path]) == [
        f"{path}: requested {other}, the server runs {default}"
    ]
