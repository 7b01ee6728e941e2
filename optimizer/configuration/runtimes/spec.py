"""What this program has to know of a library that executes models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_dynamic", "int8_attention", "as_deployed"]
""""int8" computes the products of an attention in floating point, "int8_attention" in INT8 too;
"as_deployed" is the precision of a model's own files in a repository."""
Kind = Literal["KIND_CPU", "KIND_GPU"]
GraphKind = Literal[
    "fp32",
    "fp16",
    "bf16",
    "int8_s8s8",
    "int8_s8s8_attention",
    "int8_u8s8",
    "int8_u8s7",
    "int8_trt",
    "int8_trt_attention",
    "int8_weights",
    "int8_dynamic",
    "int8_dynamic_s7",
]
"""An ONNX graph of a model. INT8: signed or unsigned activations, then signed weights, each with
their bits; "int8_trt" is the signed graph in the form that TensorRT takes; with "_attention", the
products of an attention are in INT8 too. "int8_weights" has floating-point activations, and
"int8_dynamic" quantises them at run time, with weights of 8 or 7 bits."""

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions of x86 processors that add products of 8 bits in 32 bits."""


def _every_processor(precision: Precision, flags: Set[str]) -> None:
    """Accept every processor."""


@dataclass(frozen=True)
class RuntimeSpec:
    """One runtime: what it serves, where, and how its files are made.

    A module of this folder holds the runtime's spec. Where Triton's Python backend hosts the
    runtime, NAME_session.py beside it opens the files there, without this package.

    Attributes:
        name: as in space files and records.
        precisions: that it serves, by kind of instance.
        package: Python package that Triton's Python backend needs to host it, and that makes its
            files; None where only a backend of Triton's own executes it.
        package_on_gpus: name of the package that holds its build for CUDA, where that is another.
        native_on: kinds of instance that Triton's own backend of this name executes.
        graphs: ONNX graph that each precision is made from; empty where the files are a
            `torch.export` program of the model itself.
        convert: writes the runtime's own files, given the folder of the ONNX graph and an empty
            one; None where the runtime loads the graph.
        processor_lacks: returns why a precision does not run on an x86 processor with these flags,
            in the kernel's words; None where it runs.
        recipe: version of how its files are made; to be raised with every change of the files.
        step: whether it executes the texts before or after the model of a generated pipeline: on
            the CPU, in one thread for each instance, and never chosen for a model.
    """

    name: str
    precisions: Mapping[Kind, tuple[Precision, ...]]
    package: str | None = None
    package_on_gpus: str | None = None
    native_on: Set[Kind] = frozenset()
    graphs: Mapping[Precision, GraphKind] = field(default_factory=dict)
    convert: Callable[[Path, Path], None] | None = None
    processor_lacks: Callable[[Precision, Set[str]], str | None] = _every_processor
    recipe: int = 1
    step: bool = False
