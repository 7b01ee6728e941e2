"""What each recipe of INT8 costs in accuracy and saves in time, on MiniLM with trained weights.

    .venv/bin/python -m tests.benchmarks.int8_recipes 32 128 512

Prints a table for each number of tokens. Runtimes are opened by the code that runs inside Triton,
with one thread, and executed in turns, so that other load on the machine slows all of them. Times
are the shortest CPU times of a batch, as a share of the same runtime's FP32 and of OpenVINO's BF16.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.artifacts.accuracy import compare
from optimizer.artifacts.cache import ArtifactCache
from optimizer.artifacts.graphs import smoothing
from optimizer.artifacts.graphs.int8 import SIGNED, UNSIGNED, to_int8
from optimizer.artifacts.graphs.int8_dynamic import to_int8_dynamic, to_int8_weights
from optimizer.artifacts.precision_graphs import PrecisionGraphs
from optimizer.commands.run_context import open_space
from optimizer.configuration.runtimes import onnxruntime_session, openvino_session
from optimizer.configuration.runtimes.openvino import OPENVINO
from optimizer.workload.streams import Tensors, stack
from tests.e2e import minilm, tiny

BATCH, ROUNDS = 8, 7
OUTPUT = "last_hidden_state"

Run = Callable[[Mapping[str, Any]], Any]
Write = Callable[[Path, Path, list[Tensors]], object]


@dataclass(frozen=True)
class Recipe:
    """How a graph is made, and with which precision a runtime opens it.

    Attributes:
        write: takes the folder of the FP32 graph, an empty one, and calibration rows; None serves
            the FP32 graph itself.
        channels: of an activation that share a scale in OpenVINO; 0 keeps activations in float.
    """

    name: str
    runtime: str
    precision: str
    write: Write | None = None
    channels: int = 64


def static(graph: Path, into: Path, rows: list[Tensors], **options: Any) -> None:
    to_int8(graph, into, rows, options.get("scheme", UNSIGNED), options.get("percentile", 99.999))


def unsmoothed(graph: Path, into: Path, rows: list[Tensors], **options: Any) -> None:
    before, smoothing._OUTLIER = smoothing._OUTLIER, float("inf")
    try:
        static(graph, into, rows, **options)
    finally:
        smoothing._OUTLIER = before


def dynamic(graph: Path, into: Path, rows: list[Tensors]) -> None:
    to_int8_dynamic(graph, into, rows[0], seven_bits=False)


def weights(graph: Path, into: Path, rows: list[Tensors]) -> None:
    to_int8_weights(graph, into, rows[0])


RECIPES = [
    Recipe("fp32", "onnxruntime", "fp32"),
    Recipe("static, all values", "onnxruntime", "int8", partial(unsmoothed, percentile=100)),
    Recipe("static, 99.999 %", "onnxruntime", "int8", unsmoothed),
    Recipe("static, smoothed (int8)", "onnxruntime", "int8", static),
    Recipe("signed, smoothed", "onnxruntime", "int8", partial(static, scheme=SIGNED)),
    Recipe("dynamic (int8_dynamic)", "onnxruntime", "int8_dynamic", dynamic),
    Recipe("fp32", "openvino", "fp32"),
    Recipe("bf16", "openvino", "bf16"),
    Recipe("static, 99.999 %", "openvino", "int8", unsmoothed),
    Recipe("static, smoothed (int8)", "openvino", "int8", static),
    Recipe("weights alone", "openvino", "int8_dynamic", weights, 0),
    Recipe("dynamic, 32 channels", "openvino", "int8_dynamic", weights, 32),
    Recipe("dynamic, 64 channels (int8_dynamic)", "openvino", "int8_dynamic", weights),
    Recipe("dynamic, 128 channels", "openvino", "int8_dynamic", weights, 128),
]


@contextmanager
def channels_of_a_scale(channels: int) -> Iterator[None]:
    before = openvino_session._CHANNELS_OF_A_SCALE
    openvino_session._CHANNELS_OF_A_SCALE = channels
    try:
        yield
    finally:
        openvino_session._CHANNELS_OF_A_SCALE = before


def opened(recipe: Recipe, fp32: Path, folder: Path, rows: list[Tensors]) -> Run:
    """Make the files of a recipe and open them."""
    graph = fp32
    if recipe.write is not None:
        graph = folder / f"{recipe.runtime} {recipe.name}".replace("%", "percent")
        graph.mkdir()
        recipe.write(fp32, graph, rows)
    if recipe.runtime == "onnxruntime":
        run = onnxruntime_session.open_session(str(graph), [OUTPUT], recipe.precision, 1, None)
        return lambda request: run(request)[0]
    converted = folder / f"openvino {recipe.name} converted".replace("%", "percent")
    converted.mkdir()
    assert OPENVINO.convert is not None
    OPENVINO.convert(graph, converted)
    with channels_of_a_scale(recipe.channels):
        run = openvino_session.open_session(str(converted), [OUTPUT], recipe.precision, 1, None)
        return lambda request: run(request)[0]


def milliseconds(runs: Mapping[Recipe, Run], batch: Tensors) -> dict[Recipe, float]:
    """Return the shortest CPU time of a batch, by recipe."""
    times: dict[Recipe, list[float]] = {recipe: [] for recipe in runs}
    for _ in range(ROUNDS):
        for recipe, run in runs.items():
            start = time.process_time()
            run(batch)
            times[recipe].append(1000 * (time.process_time() - start))
    return {recipe: min(each) for recipe, each in times.items()}


def measure(length: int, folder: Path) -> None:
    """Print the table of one number of tokens."""
    minilm.write_inputs(folder, length)
    [model] = open_space(tiny.write_space(folder, minilm.space(length))).models
    graphs = PrecisionGraphs(model, ArtifactCache(folder / "cache"))
    fp32, inputs = graphs.entry("fp32").path, graphs.inputs
    rows = inputs.evaluation[: 64 if length <= 128 else 16]
    judged = np.concatenate([row["attention_mask"] for row in rows]) == 1
    runs = {recipe: opened(recipe, fp32, folder, inputs.calibration) for recipe in RECIPES}
    outputs = {
        recipe: np.concatenate([run(stack(rows[at : at + BATCH])) for at in range(0, len(rows), 8)])
        for recipe, run in runs.items()
    }
    reference = outputs[RECIPES[0]]
    ms = milliseconds(runs, stack(rows[:BATCH]))
    floats = {r.runtime: ms[r] for r in RECIPES if r.precision == "fp32"}
    [bf16] = [ms[recipe] for recipe in RECIPES if recipe.precision == "bf16"]
    print(f"\n{length} tokens, batches of {BATCH}")
    print("| runtime | recipe | cosine: mean | least | argmax | time / fp32 | / OpenVINO bf16 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for recipe in RECIPES:
        accuracy = compare(reference, outputs[recipe], judged)
        print(
            f"| {recipe.runtime} | {recipe.name} | {accuracy.mean_cosine:.5f} |"
            f" {accuracy.min_cosine:.5f} | {accuracy.argmax_agreement:.3f} |"
            f" {ms[recipe] / floats[recipe.runtime]:.2f} | {ms[recipe] / bf16:.2f} |",
            flush=True,
        )


def main() -> None:
    for length in [int(each) for each in sys.argv[1:]] or [32, 128, 512]:
        with tempfile.TemporaryDirectory() as folder:
            measure(length, Path(folder))


if __name__ == "__main__":
    main()
