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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
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
for folder in sys.argv[1:]:
    graph, request = f"{folder}/int8/model.onnx", numpy.load(f"{folder}/x.npy")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    numpy.save(f"{folder}/y.npy", session.run(["y"], {"x": request})[0])
"""
OPENVINO = """
import sys, numpy, openvino
for folder in sys.argv[1:]:
    graph, request = f"{folder}/int8/model.onnx", numpy.load(f"{folder}/x.npy")
    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    numpy.save(f"{folder}/y.npy", model({"x": request})["y"])
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


Quantise = Callable[[Path, Path, list[Tensors]], object]


def errors(folder: Path, product: str, runtime: str, *quantise: Quantise) -> list[float]:
    """Return the largest error of each INT8 graph, as a share of the largest output."""
    node, weights, shape = PRODUCTS[product]
    rows: list[Tensors] = [{"x": near_one(1, *shape)} for _ in range(4)]
    request = stack(rows)
    folders = [folder / str(number) for number in range(len(quantise))]
    for each, to_int8_by in zip(folders, quantise, strict=True):
        before, after = each / "fp32", each / "int8"
        for made in (before, after):
            made.mkdir(parents=True)
        graphs.write(before / "model.onnx", [node], {"w": near_one(*weights)}, {"x": ["b", *shape]})
        to_int8_by(before, after, rows)
        np.save(each / "x.npy", request["x"])
    run_emulated(folders, runtime)
    expected = graphs.run_onnxruntime(folders[0] / "fp32" / "model.onnx", request)
    served = [np.load(each / "y.npy") for each in folders]
    return [float(np.abs(own - expected).max() / np.abs(expected).max()) for own in served]


def run_emulated(folders: Sequence[Path], runtime: str) -> None:
    """Calculate y.npy of each folder with int8/model.onnx, as a processor without VNNI does.

    In one process: an emulated import takes most of the time.
    """
    emulator, script = RUNS[runtime]
    subprocess.run(
        [*emulator, sys.executable, "-c", script, *folders],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
        capture_output=True,
        timeout=300,
    )


def statically(scheme: Int8Scheme) -> Quantise:
    return lambda before, after, rows: to_int8(before, after, rows, scheme)


def dynamically(*, seven_bits: bool) -> Quantise:
    return lambda before, after, rows: to_int8_dynamic(
        before, after, rows[0], seven_bits=seven_bits
    )


def assert_that_7_bits_are_right_where_8_overflow(eight: float, seven: float) -> None:
    # Were the first one right too, this would be no processor without VNNI.
    assert eight > 0.3
    assert seven < 0.02


@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed")
def test_dynamic_quantisation_has_weights_of_7_bits_too(tmp_path: Path) -> None:
    both = [dynamically(seven_bits=seven) for seven in (False, True)]
    found = errors(tmp_path, "MatMul", "onnxruntime", *both)
    assert_that_7_bits_are_right_where_8_overflow(*found)


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
    both = [statically(scheme) for scheme in (UNSIGNED, UNSIGNED_7_BITS)]
    found = errors(tmp_path, product, runtime, *both)
    assert_that_7_bits_are_right_where_8_overflow(*found)
