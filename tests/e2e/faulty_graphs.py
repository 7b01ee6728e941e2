"""A small ONNX classifier of tokens, and the ways in which an export of it can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

LENGTHS = (8, 16)
_VOCABULARY, _WIDTH, _CLASSES = 100, 6, 4


def _node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def _float(name: str, output: str) -> NodeProto:
    return _node("Cast", name, output, to=TensorProto.FLOAT)


_ROW = [
    _node("Range", "zero batch one", "row"),
    _node("Unsqueeze", "row first", "row_column"),
]
_FAULTS: dict[str, list[NodeProto]] = {
    "none": [_node("Identity", "h", "y")],
    "zeros beyond the eighth row": [
        *_ROW,
        _node("Less", "row_column eight", "kept"),
        _float("kept", "factor"),
        _node("Mul", "h factor", "y"),
    ],
    "rows permuted": [
        *_ROW,
        _node("Add", "row one", "next"),
        _node("Mod", "next batch", "order"),
        _node("Gather", "h order", "y", axis=0),
    ],
    "first row repeated": [
        *_ROW,
        _node("Mul", "row zero", "order"),
        _node("Gather", "h order", "y", axis=0),
    ],
    "odd batches wrong": [
        _node("Mod", "batch two", "odd"),
        _node("Equal", "odd one", "is_odd"),
        _node("Equal", "batch one", "is_one"),
        _node("Xor", "is_odd is_one", "wrong"),
        _node("Not", "wrong", "right"),
        _float("right", "factor"),
        _node("Mul", "h factor", "y"),
    ],
    "batch 1 wrong": [
        _node("Greater", "batch one", "right"),
        _float("right", "factor"),
        _node("Mul", "h factor", "y"),
    ],
    "NaN beyond batches of 8": [
        _node("LessOrEqual", "batch eight", "right"),
        _float("right", "factor"),
        _node("Div", "factor factor", "one_or_nan"),
        _node("Mul", "h one_or_nan", "y"),
    ],
    "rows mixed": [
        _node("ReduceMean", "h first_axis", "mean", keepdims=1),
        _node("Greater", "batch one", "several"),
        _float("several", "factor"),
        _node("Mul", "mean factor", "shift"),
        _node("Sub", "h shift", "y"),
    ],
    "fails beyond batches of 8": [
        _node("LessOrEqual", "batch eight", "right"),
        _node("Cast", "right", "one_or_none", to=TensorProto.INT64),
        _node("Sub", "one_or_none one", "axis"),
        _node("Mul", "axis eight", "far"),
        # -8 is beyond the rows of a table of one: the lookup fails.
        _node("Gather", "first far", "one_again", axis=0),
        _float("one_again", "factor"),
        _node("Mul", "h factor", "y"),
    ],
    "shorter lengths wrong": [
        _node("Equal", "length sixteen", "right"),
        _float("right", "factor"),
        _node("Mul", "h factor", "y"),
    ],
    "length baked in": [
        _node("Reshape", "ids baked", "fitting"),
        _node("Gather", "table fitting", "own_embedded", axis=0),
        _node("ReduceMean", "own_embedded second_axis", "own_pooled", keepdims=0),
        _node("MatMul", "own_pooled w", "y"),
    ],
    "rows of data": [_node("NonZero", "ids", "found"), _float("found", "y")],
    "batch reduced": [_node("ReduceMean", "h first_axis", "y", keepdims=1)],
}
FAULTS = tuple(_FAULTS)


def write_graph(path: Path, fault: str = "none") -> Path:
    """Write y [batch, 4] of ids [batch, length] with one fault, or none."""
    rng = np.random.default_rng(0)
    constants: dict[str, object] = {
        "table": rng.normal(size=(_VOCABULARY, _WIDTH)).astype(np.float32),
        "w": rng.normal(size=(_WIDTH, _CLASSES)).astype(np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
        "two": np.int64(2),
        "eight": np.int64(8),
        "sixteen": np.int64(16),
        "first": np.array([1], np.int64),
        "first_axis": np.array([0], np.int64),
        "second_axis": np.array([1], np.int64),
        "minus": np.array([-1], np.int64),
        "classes": np.array([-1, _CLASSES], np.int64),
        "baked": np.array([-1, LENGTHS[-1]], np.int64),
    }
    nodes = [
        _node("Shape", "ids", "shape_of_ids"),
        _node("Gather", "shape_of_ids zero", "batch", axis=0),
        _node("Gather", "shape_of_ids one", "length", axis=0),
        _node("Gather", "table ids", "embedded", axis=0),
        _node("ReduceMean", "embedded second_axis", "pooled", keepdims=0),
        _node("MatMul", "pooled w", "h"),
        *_FAULTS[fault],
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, path)
    return path
