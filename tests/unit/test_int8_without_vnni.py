"""INT8 on processors without VNNI: sums of products overflow, unless weights have 7 bits.

ONNX Runtime runs on an emulated Haswell where qemu-user is installed (Debian: qemu-user); OpenVINO
is told to use no instructions beyond AVX2.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

from optimizer.artifacts.graphs.int8 import UNSIGNED, UNSIGNED_7_BITS, to_int8
from optimizer.artifacts.graphs.int8_dynamic import to_int8_dynamic
from optimizer.artifacts.graphs.quantisation import Int8Scheme
from optimizer.workload.streams import Tensors, stack
from tests.unit import int8_graphs as graphs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors do not overflow"),
]

QEMU = shutil.which("qemu-x86_64")
CHANNELS = 64

ONNXRUNTIME = """
import sys, numpy, onnxruntime
graph, request, into = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
numpy.save(into, session.run(["y"], {"x": numpy.load(request)})[0])
"""
OPENVINO = """
import sys, numpy, openvino
graph, request, into = sys.argv[1:]
model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
numpy.save(into, model({"x": numpy.load(request)})["y"])
"""
RUNS = {
    "onnxruntime": ([str(QEMU), "-cpu", "Haswell-v4"], ONNXRUNTIME),
    "openvino": ([], OPENVINO),
}

PRODUCTS: dict[str, tuple[NodeProto, tuple[int, ...], tuple[int, ...]]] = {
    # Node, shape of its weights, and of a request.
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (CHANNELS, 32), (8, CHANNELS)),
    "Gemm": (helper.make_node("Gemm", ["x", "w"], ["y"]), (CHANNELS, 32), (CHANNELS,)),
    "Conv": (helper.make_node("Conv", ["x", "w"], ["y"]), (32, CHANNELS, 1, 1), (CHANNELS, 4, 4)),
}


def near_one(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Values that are all near the largest: two products in 8 bits overflow 16."""
    return np.random.default_rng(0).uniform(0.9, 1, shape).astype(np.float32)


def error(folder: Path, product: str, scheme: Int8Scheme, runtime: str) -> float:
    """Return the largest error of the INT8 graph, as a share of the largest output."""
    node, weights, shape = PRODUCTS[product]
    rows: list[Tensors] = [{"x": near_one(1, *shape)} for _ in range(4)]
    before, after = folder / "fp32", folder / "int8"
    for made in (before, after):
        made.mkdir()
    graphs.write(before / "model.onnx", [node], {"w": near_one(*weights)}, {"x": ["b", *shape]})
    to_int8(before, after, rows, scheme)
    request = stack(rows)
    expected = graphs.run_onnxruntime(before / "model.onnx", request)
    served = emulated(folder, request, runtime)
    return float(np.abs(served - expected).max() / np.abs(expected).max())


def emulated(folder: Path, request: Tensors, runtime: str) -> NDArray[np.float32]:
    """Return what a processor without VNNI calculates with `folder`/int8/model.onnx."""
    np.save(folder / "x.npy", request["x"])
    emulator, script = RUNS[runtime]
    files = [folder / "int8" / "model.onnx", folder / "x.npy", folder / "y.npy"]
    subprocess.run(
        [*emulator, sys.executable, "-c", script, *files],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    served: NDArray[np.float32] = np.load(folder / "y.npy")
    return served


@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed")
def test_dynamic_quantisation_has_weights_of_7_bits_too(tmp_path: Path) -> None:
    node, weights, shape = PRODUCTS["MatMul"]
    rows: list[Tensors] = [{"x": near_one(1, *shape)} for _ in range(4)]
    for seven_bits in (False, True):
        folder = tmp_path / str(seven_bits)
        for made in ("fp32", "int8"):
            (folder / made).mkdir(parents=True)
        graph = folder / "fp32" / "model.onnx"
        graphs.write(graph, [node], {"w": near_one(*weights)}, {"x": ["b", *shape]})
        to_int8_dynamic(graph.parent, folder / "int8", rows[0], seven_bits=seven_bits)
        served = emulated(folder, stack(rows), "onnxruntime")
        expected = graphs.run_onnxruntime(graph, stack(rows))
        wrong = float(np.abs(served - expected).max() / np.abs(expected).max())
        assert wrong < 0.02 if seven_bits else wrong > 0.3, (seven_bits, wrong)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param(
            "onnxruntime",
            marks=pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed"),
        ),
        "openvino",
    ],
)
def test_weights_of_7_bits_are_right_where_those_of_8_overflow(
    tmp_path: Path, product: str, runtime: str
) -> None:
    for name, scheme in (("u8s8", UNSIGNED), ("u8s7", UNSIGNED_7_BITS)):
        (tmp_path / name).mkdir()
        found = error(tmp_path / name, product, scheme, runtime)
        # Were the first one right too, this would be no processor without VNNI.
        assert found > 0.3 if name == "u8s8" else found < 0.02, (name, found)
