"""Everything that one build needs, as a value that is passed as JSON to where it runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import EngineProfile
from optimizer.workload.streams import Payloads

ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
FACTS_FILE = "plan.json"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputShapes:
    """The optimisation profile of one input.

    Attributes:
        least, optimal, most: TensorRT's minimum, optimal and maximum shape, [batch, *dimensions];
            without the batch where the model has no batch axis.
    """

    name: str
    least: Shape
    optimal: Shape
    most: Shape


@dataclass(frozen=True)
class Recipe:
    """One build. File names have no folders, which differ between build locations.

    Attributes:
        workspace_mib: scratch memory that a kernel may use; None allows all of the GPU's memory.
        optimization_level: of the builder, 0 to 5.
        tf32: whether FP32 products may be rounded to TF32.
        gpu_name, compute_capability: of the engine's GPU, as the driver reports them; a build on
            another GPU is refused.
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
        """Return the first argument of `build_script`."""
        return json.dumps(asdict(self))


def input_shapes(payloads: Payloads, profile: EngineProfile) -> tuple[InputShapes, ...]:
    """Return the optimisation profile for requests of every length up to the longest.

    The longest length is the optimal one: without length buckets every request is padded to it, and
    with buckets it still takes most of the time.
    """
    smallest, largest = payloads.smallest_sizes(), payloads.largest_sizes()
    batches = (1, profile.optimal_batch_size, profile.max_batch_size)
    least, optimal, most = ((size,) if payloads.batched else () for size in batches)
    return tuple(
        InputShapes(
            tensor.name,
            (*least, *tensor.sized(smallest)),
            (*optimal, *tensor.sized(largest)),
            (*most, *tensor.sized(largest)),
        )
        for tensor in payloads.tensors
    )


def recipe_for(
    precision: Precision,
    inputs: tuple[InputShapes, ...],
    settings: EngineSettings,
    timing_cache: str,
) -> Recipe:
    """Return the recipe of one engine.

    TF32 is on by default and has the 10-bit mantissa of FP16, so an FP32 engine is built without
    it. In other precisions it affects only the operators that stay in FP32, and remains on.
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
