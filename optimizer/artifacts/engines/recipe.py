"""Everything that one build needs, as a value that JSON can carry into any place. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.serving_config import EngineProfile
from optimizer.runtimes.spec import Precision
from optimizer.workload.streams import Payloads

ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
FACTS_FILE = "plan.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputShapes:
    """The shapes of one input that an engine takes, and the one that it is fastest for.

    Attributes:
        least, optimal, most: [batch, *dimensions], each at least as large as the one before in
            every dimension.
    """

    name: str
    least: Shape
    optimal: Shape
    most: Shape


@dataclass(frozen=True)
class Recipe:
    """One build. Files are named without their folders, which differ from place to place.

    Attributes:
        workspace_mib: scratch memory that a kernel may use; None leaves all of the GPU's.
        optimization_level: the builder's, 0 to 5.
        tf32: whether FP32 products may be rounded to TF32.
        gpu_name, compute_capability: of the GPU that it is for, as the driver tells them; one that
            turns out to be another is refused.
    """

    onnx: str
    plan: str
    inputs: tuple[InputShapes, ...]
    workspace_mib: int | None
    optimization_level: int
    tf32: bool
    timing_cache: str
    gpu_name: str
    compute_capability: tuple[int, int]

    def to_json(self) -> str:
        """What `build_script` takes as its first argument."""
        return json.dumps(asdict(self))


def input_shapes(payloads: Payloads, profile: EngineProfile) -> tuple[InputShapes, ...]:
    """The shapes that requests arrive with.

    Requests are padded up, at most to the longest length. An engine is fastest for that one: where
    nothing else is asked for every request arrives with it, and where there are shorter buckets the
    time still goes where the tokens are.
    """
    lengths = payloads.lengths

    def shape(axes: tuple[int | None, ...], batch: int, length: int) -> Shape:
        return (batch, *(length if axis is None else axis for axis in axes))

    return tuple(
        InputShapes(
            tensor.name,
            shape(tensor.shape, 1, min(lengths.lengths)),
            shape(tensor.shape, profile.optimal_batch_size, lengths.longest),
            shape(tensor.shape, profile.max_batch_size, lengths.longest),
        )
        for tensor in payloads.tensors
    )


def recipe_for(
    precision: Precision,
    inputs: tuple[InputShapes, ...],
    settings: EngineSettings,
    timing_cache: str,
) -> Recipe:
    """The recipe of one engine.

    An FP32 engine keeps to FP32: TF32, which is on by default, has 10 bits of mantissa as FP16 has.
    Of the other precisions only what is left in FP32 would gain or lose by it, so it stays on.
    """
    return Recipe(
        onnx=ONNX_FILE,
        plan=PLAN_FILE,
        inputs=inputs,
        workspace_mib=settings.workspace_mib,
        optimization_level=settings.optimization_level,
        tf32=precision != "fp32",
        timing_cache=timing_cache,
        gpu_name=settings.gpu.name,
        compute_capability=settings.gpu.compute_capability,
    )
