"""Name the free axes of a graph's inputs, so that one name stands for one size.

An exporter may give one name to axes whose sizes differ, which TensorRT refuses at the end of a
build, and two names to the batch axis, which hides that the sizes are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from optimizer.artifacts.graphs.batch_axis import BATCH
from optimizer.artifacts.graphs.onnx_graph import with_subgraphs
from optimizer.workload.streams import Payloads

if TYPE_CHECKING:
    import onnx


def name_axes(graph: onnx.GraphProto, payloads: Payloads) -> None:
    """Name the free axes of the inputs after the dimensions of `payloads`.

    Axes of other tensors follow where their name had one meaning, and lose it where it had several.
    """
    named = {spec.name: _names(spec.shape, batched=payloads.batched) for spec in payloads.tensors}
    inputs = [value for value in graph.input if value.name in named]
    meanings: dict[str, set[str]] = {}
    for value in inputs:
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, named[value.name], strict=False):
            if axis.WhichOneof("value") != "dim_value":
                meanings.setdefault(axis.dim_param, set()).add(name)
                axis.dim_param = name
    for each in with_subgraphs(graph):
        _rename(chain(each.value_info, each.output), meanings)


def _names(shape: Sequence[int | str | None], *, batched: bool) -> list[str]:
    return [*([BATCH] if batched else []), *(f"size_{size}" for size in shape)]


def _rename(values: chain[onnx.ValueInfoProto], meanings: Mapping[str, set[str]]) -> None:
    taken = set().union(*meanings.values())
    meanings = {name: own for name, own in meanings.items() if name}
    for value in values:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in meanings.keys() | taken:
                names = meanings.get(axis.dim_param, set())
                axis.Clear()
                if len(names) == 1:
                    [axis.dim_param] = names
