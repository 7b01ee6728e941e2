"""Names of the free axes of a graph's inputs."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from optimizer.artifacts.graphs.axis_names import name_axes
from optimizer.workload.request_sizes import ONE_LENGTH
from optimizer.workload.streams import Payloads, TensorSpec


def value(name: str, *axes: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def payloads(batched: bool = True, **shapes: tuple[int | str, ...]) -> Payloads:
    tensors = tuple(TensorSpec(name, "FP32", axes) for name, axes in shapes.items())
    return Payloads(tensors, ONE_LENGTH, batched=batched)


def graph(*inputs: onnx.ValueInfoProto, inner: onnx.ValueInfoProto) -> onnx.GraphProto:
    nodes = [helper.make_node("Identity", ["a"], ["y"])]
    return helper.make_graph(nodes, "graph", inputs, [value("y", "n", None)], value_info=[inner])


def test_one_name_for_axes_of_two_sizes_becomes_two_and_is_dropped_elsewhere() -> None:
    made = graph(value("a", "n", "n"), value("b", "n", "n"), inner=value("h", "n", None))
    name_axes(made, payloads(a=("length",), b=(7,)))
    assert [shape(each) for each in made.input] == [["batch", "size_length"], ["batch", "size_7"]]
    assert shape(made.output[0]) == shape(made.value_info[0]) == [0, 0]


def test_several_names_of_one_size_become_one_everywhere() -> None:
    made = graph(value("a", "n", "s", 3), value("b", "m", None, 3), inner=value("h", "m", "s", 4))
    name_axes(made, payloads(a=("length", 3), b=("length", 3)))
    assert [shape(each) for each in made.input] == [["batch", "size_length", 3]] * 2
    assert shape(made.value_info[0]) == ["batch", "size_length", 4]
    assert shape(made.output[0]) == ["batch", 0], "an axis without a name gets none"


def test_a_name_that_means_something_else_inside_the_graph_is_dropped() -> None:
    made = graph(value("a", "n", 3), inner=value("h", "batch", "other"))
    name_axes(made, payloads(a=(3,)))
    assert shape(made.value_info[0]) == [0, "other"]


def test_inputs_without_a_batch_axis_are_named_too() -> None:
    made = graph(value("a", "n"), inner=value("h", "n"))
    name_axes(made, payloads(batched=False, a=("length",)))
    assert shape(made.input[0]) == shape(made.value_info[0]) == ["size_length"]
