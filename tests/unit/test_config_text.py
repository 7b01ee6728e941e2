from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.triton import config_text
from optimizer.triton.config_syntax import read_syntax
from optimizer.triton.config_text import edited
from tests.unit.config_texts import changed, configs, texts_of

DEPLOYED = """\
# The classifier of the mail room. Ask before you change it!
name: "mail"   # as clients call it
platform: 'onnx' "runtime_onnx"
max_batch_size : 8;

input [
    {
        name: "ids"   # of the tokenizer
        data_type: TYPE_INT64
        dims: [ -1 ]
    },
    {
        name: "mask"
        data_type: 4
        dims: [ -1 ]
    }
]
output < name: "scores" data_type: TYPE_FP32 dims: 2 label_filename: "labels.txt" >

# One for each socket.
instance_group [
    {
        kind: KIND_CPU
        count: 1   # per socket
    },
    { kind: KIND_GPU, count: 2, gpus: [ 0, 1 ] }
]
dynamic_batching { }
parameters { key: "threads" value { string_value: "4" } } # cores
parameters: {
    key: "spin",
    value: { string_value: "no" }
}
"""


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def same(one: Message, other: Message) -> bool:
    """Compare two messages; NaN equals itself."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def after(change: str, text: str = DEPLOYED) -> str:
    """Return the text after Python statements that change its configuration `c`."""
    target = parsed(text)
    exec(change, {"c": target})
    result = edited(text, target)
    assert parsed(result) == target
    return result


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        ("c.max_batch_size = 16", "max_batch_size : 8;", "max_batch_size : 16;"),
        ("c.max_batch_size = 0", "max_batch_size : 8;", "max_batch_size : 0;"),
        ("c.platform = 'x'", "'onnx' \"runtime_onnx\"", '"x"'),
        ("c.input[1].data_type = 3", "data_type: 4", "data_type: TYPE_UINT16"),
        ("c.instance_group[0].count = 3", "count: 1   # per", "count: 3   # per"),
        ("c.instance_group[1].gpus[:] = [1]", "gpus: [ 0, 1 ]", "gpus: [ 1 ]"),
        ("c.instance_group[1].gpus[:] = [0]", "gpus: [ 0, 1 ]", "gpus: [ 0 ]"),
        ("c.instance_group[1].gpus[:] = [0, 2, 3]", "[ 0, 1 ]", "[ 0, 2, 3 ]"),
        ("c.instance_group[1].gpus[:] = [7, 0, 1]", "[ 0, 1 ]", "[ 7, 0, 1 ]"),
        ("c.instance_group[1].gpus[:] = []", "count: 2, gpus: [ 0, 1 ]", "count: 2,"),
        ("del c.instance_group[1]", "},\n    { kind: KIND_GPU, count: 2, gpus: [ 0, 1 ] }", "}"),
        (
            "c.instance_group.add(count=5)",
            "[ 0, 1 ] }\n",
            "[ 0, 1 ] },\n    {\n        count: 5\n    }\n",
        ),
        (
            "c.dynamic_batching.max_queue_delay_microseconds = 5",
            "{ }",
            "{ max_queue_delay_microseconds: 5 }",
        ),
        ("c.ClearField('dynamic_batching')", "dynamic_batching { }\n", ""),
        ("c.parameters['threads'].string_value = '8'", '"4"', '"8"'),
        (
            "del c.parameters['threads']",
            'parameters { key: "threads" value { string_value: "4" } } # cores\n',
            "",
        ),
        (
            "c.parameters['new'].string_value = '1'",
            '"no" }\n}\n',
            '"no" }\n}\n'
            'parameters {\n    key: "new"\n    value {\n        string_value: "1"\n    }\n}\n',
        ),
        (
            "c.response_cache.enable = True",
            '"no" }\n}\n',
            '"no" }\n}\nresponse_cache {\n    enable: true\n}\n',
        ),
        (
            "c.output[0].reshape.shape.extend([1, 2])",
            '"labels.txt" >',
            '"labels.txt" reshape { shape: [1, 2] } >',
        ),
    ],
)
def test_only_the_changed_value_changes(change: str, old: str, new: str) -> None:
    assert DEPLOYED.count(old) == 1
    assert after(change) == DEPLOYED.replace(old, new)


def test_lines_end_as_in_the_file() -> None:
    windows = DEPLOYED.replace("\n", "\r\n")
    change = "c.max_batch_size = 4; c.response_cache.enable = True; del c.input[0]"
    assert after(change, windows) == after(change).replace("\n", "\r\n")


def test_a_file_without_a_last_line_end_stays_without() -> None:
    assert (
        after("c.max_batch_size = 4", 'name: "a" # last') == 'name: "a" # last\nmax_batch_size: 4'
    )


def test_an_empty_file() -> None:
    assert after("c.name = 'a'", "") == 'name: "a"\n'


def test_a_text_that_is_no_configuration() -> None:
    with pytest.raises(ValueError, match=r"no Triton model configuration: 2:1 .*no field named"):
        edited('name: "a"\nnames: "b"\n', ModelConfig())


def test_an_edit_that_proves_wrong_rewrites_its_message_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No text is known that needs it, so one change is overlooked on purpose."""
    right = config_text._value_text
    monkeypatch.setattr(
        config_text, "_value_text", lambda *a: "7" if a[1] == "count" else right(*a)
    )
    text = after("c.instance_group[0].count = 3")
    old = "{\n        kind: KIND_CPU\n        count: 1   # per socket\n    }"
    assert text == DEPLOYED.replace(old, "{\n        count: 3\n        kind: KIND_CPU\n    }")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_text_and_any_change(data: st.DataObject) -> None:
    config = data.draw(configs())
    text = data.draw(texts_of(config))
    assert same(parsed(text), config)
    assert edited(text, config) == text
    target = data.draw(changed(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_text._TextEditor, "_whole", _never)
        result = edited(text, target)
    assert same(parsed(result), target)
    lines = iter(result.splitlines())
    assert all(line in lines for line in _unchanged_lines(text, config, target))


def _never(*_: Any) -> str:
    raise AssertionError("a message was rewritten as a whole")


def _unchanged_lines(text: str, config: ModelConfig, target: ModelConfig) -> list[str]:
    """Return the lines without any part of a field, at the top of the text, that changes."""
    fields = [
        each
        for each in read_syntax(text).fields
        if not same(_only(config, each.name), _only(target, each.name))
    ]
    unchanged, start = [], 0
    for line in text.splitlines(keepends=True):
        end = start + len(line)
        if not any(field.start < end and field.end > start for field in fields):
            unchanged.append(line.rstrip("\r\n"))
        start = end
    return unchanged


def _only(config: ModelConfig, name: str) -> ModelConfig:
    part = ModelConfig()
    part.CopyFrom(config)
    for field in config.DESCRIPTOR.fields_by_name:
        if field != name:
            part.ClearField(field)
    return part
