"""Multiply-accumulates and memory of an ONNX graph, from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.workload.streams import Tensors

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Shapes = Mapping[str, tuple[int, ...]]
"""Sizes of the axes of each tensor, by its name."""

_BYTES_PER_ELEMENT = 4

_NON_TENSOR_OPERATORS = {
    *("Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceMap", "SplitToSequence"),
}
"""Operators whose output has no shape."""


def measure_shapes(path: Path, request: Tensors) -> Shapes:
    """Execute one request and return the shape of every tensor outside subgraphs (If, Loop, Scan).

    No tensor is kept, so this takes no more memory than the inference itself.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    names = [
        name
        for node in model.graph.node
        if node.op_type not in _NON_TENSOR_OPERATORS
        for name in node.output
        if name
    ]
    shape_names = [f"{name}/shape" for name in names]
    model.graph.node.extend(
        onnx.helper.make_node("Shape", [name], [shape])
        for name, shape in zip(names, shape_names, strict=True)
    )
    session = observing_session(model, path, shape_names)
    shapes = {name: values.shape for name, values in request.items()}
    for name, shape in zip(names, session.run(shape_names, request), strict=True):
        shapes[name] = tuple(map(int, shape))
    return shapes


def observing_session(
    model: onnx.ModelProto, path: Path, outputs: Iterable[str]
) -> onnxruntime.InferenceSession:
    """Return a session whose outputs are tensors inside a graph.

    Args:
        model: the file at `path`, with more nodes or not; external data need not be loaded.
        outputs: names of the tensors.
    """
    import onnx
    import onnxruntime

    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    observed = path.with_name("observed.onnx")
    onnx.save(model, observed)
    options = onnxruntime.SessionOptions()
    # Optimisations would fuse the observed tensors away.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # This order computes shapes at once; the default may keep every tensor until the end.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(observed, options, providers=["CPUExecutionProvider"])
    finally:
        observed.unlink()


def peak_bytes(nodes: Sequence[onnx.NodeProto], shapes: Shapes, kept: Set[str]) -> int:
    """Return the peak size of all live tensors while the graph is executed, in bytes.

    Args:
        nodes: in the order of execution.
        kept: tensors that live until the end.
    """
    last_use = {name: at for at, node in enumerate(nodes) for name in (*node.output, *node.input)}
    made = {name for node in nodes for name in node.output} & shapes.keys()
    living = peak = 0
    for at, node in enumerate(nodes):
        living += total_bytes(shapes, made.intersection(node.output))
        peak = max(peak, living)
        unused = {name for name in (*node.input, *node.output) if last_use[name] == at}
        living -= total_bytes(shapes, (unused & made) - kept)
    return peak


def total_bytes(shapes: Shapes, names: Iterable[str]) -> int:
    """Return the size of tensors, in bytes."""
    return sum(_bytes(shapes, name) for name in names)


def multiply_accumulates(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Return the multiply-accumulates of a node; 0 for operators that are no products.

    Args:
        shapes: of the node's tensors, including its weights.
    """
    count = _COUNTS.get(node.op_type)
    needed = (*node.input[:2], node.output[0])
    if count is None or any(name not in shapes for name in needed):
        return 0
    return count(node, shapes)


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed_convolution(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _weights_for_each_row(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Recurrent layers and fused attention multiply every row of their input by all weights."""
    rows = math.prod(shapes[node.input[0]][:-1])
    weights = [shapes[name] for name in node.input[1:] if len(shapes.get(name, ())) > 1]
    return rows * sum(map(math.prod, weights))


_COUNTS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Attention": _weights_for_each_row,
    "GRU": _weights_for_each_row,
    "LSTM": _weights_for_each_row,
    "RNN": _weights_for_each_row,
}


def _bytes(shapes: Shapes, name: str) -> int:
    return _BYTES_PER_ELEMENT * math.prod(shapes[name])
