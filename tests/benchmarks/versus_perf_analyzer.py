"""This client beside perf_analyzer: latencies, lag, CPU and the largest rate, as ratios.

    PATH=$PATH:FOLDER_OF_PERF_ANALYZER .venv/bin/python -m tests.benchmarks.versus_perf_analyzer

Needs perf_analyzer on PATH (README, "One configuration, measured", says where it comes from), and
two cores that are free for ten minutes: the server is given the first, each client the last. Pairs
are interleaved, and either client goes first in turn; latencies are timed from the send by both.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from onnx import TensorProto, helper
from ruamel.yaml import YAML

from optimizer.commands.run_context import (
    RunContext,
    artifact_cache,
    open_space,
    require_machine,
)
from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.shipped import shipped
from optimizer.load.capacity import RunLevel
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.load.perf_analyzer import (
    NAME,
    PerfAnalyzerJob,
    PerfAnalyzerResult,
    run_perf_analyzer,
)
from optimizer.machine.slots import Slot, local_slot
from optimizer.measurement.level import LoadLevel
from optimizer.search.level_runner import LevelRunner
from optimizer.space_file.chosen_point import fixed_at
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event
from optimizer.triton.session import ServedConfiguration, files_of

PAYLOAD_LENGTH = 512
PAYLOAD_RATE = 500.0
OUTSTANDING = 64
TIMEOUT_SECONDS = 30.0
BATCHING = {
    "batching": "true",
    "max_batch_size": "16",
    "instance_count": "1",
    "intra_op_threads": "1",
}


@dataclass(frozen=True)
class Bench:
    """One configuration that is being served, and what either client may do to it."""

    space: Space
    config: ServingConfig
    served: ServedConfiguration
    levels: LevelRunner
    run: RunLevel
    binary: Path
    slot: Slot
    seconds: float

    def ours(self, rate: float) -> LoadLevel:
        load = OpenLoop(rate / self.space.workload.demand_per_second)
        return self.run(LevelPlan(load, 1.0, self.seconds, TIMEOUT_SECONDS))

    def saturated(self) -> LoadLevel:
        return self.run(LevelPlan(ClosedLoop(OUTSTANDING), 1.0, self.seconds, TIMEOUT_SECONDS))

    def theirs(self, rate: float | None) -> PerfAnalyzerResult:
        [stream] = self.space.workload.streams
        return run_perf_analyzer(
            self.binary,
            PerfAnalyzerJob(
                model=stream.target,
                protocol="grpc",
                address=self.served.server.endpoint.grpc,
                requests=self.levels.requests(stream, self.config),
                rate_per_second=rate,
                concurrency=OUTSTANDING,
                seconds=self.seconds,
                cores=self.slot.client_cores,
            ),
        )

    def answered(self) -> int:
        [model] = self.config.models
        return int(self.served.control.statistics(model.name).inference_stats.success.count)

    def cpu_ms_per_request(self, send: Callable[[], float]) -> float:
        """Process-CPU time of whatever `send` does, which it returns in s, by request answered."""
        before = self.answered()
        seconds = send()
        return seconds * 1e3 / (self.answered() - before)


@contextmanager
def bench(space: Space, folder: Path, binary: Path, seconds: float) -> Iterator[Bench]:
    """Serve the only point of a space on the first core, with the client on the last."""
    cores = local_slot().cores
    slot = Slot(cores[:1], cores[-1:])
    _, machine = require_machine(space)
    directory = StudyDirectory(folder / space.study)
    context = RunContext(space, directory, artifact_cache(None), slot, machine)

    def ignore(_: Event) -> None:
        pass

    with context.prepared_session(ignore) as (session, prepared):
        config = prepared.space.config(prepared.space.baseline)
        served = session.serve(config, files_of(config, prepared.files))
        with context.levels(ignore) as levels, levels.on(served, config) as run:
            yield Bench(space, config, served, levels, run, binary, slot, seconds)


def in_turn(pairs: int, one: Callable[[], Any], other: Callable[[], Any]) -> list[tuple[Any, Any]]:
    """Both, `pairs` times, the first in turn."""
    found = []
    for n in range(pairs):
        if n % 2:
            later = other()
            found.append((one(), later))
        else:
            found.append((one(), other()))
    return found


def ratio(name: str, pairs: Sequence[tuple[float, float]], unit: str) -> None:
    """Medians of both, and the median of the pairs' ratios."""
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    ours, theirs = (median(each) for each in zip(*pairs, strict=True))
    print(
        f"  {name:22} {ours:9.3f} {unit:6} perf_analyzer {theirs:9.3f} {unit:6} "
        f"ratio of medians {ours / theirs:.3f}, of pairs {median(ratios):.3f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def compare_latencies(it: Bench, pairs: int) -> None:
    """p50 and p95 from the send at 30 % and 70 % of what is saturation."""
    saturation = it.saturated().achieved_per_second
    print(f"{it.space.study}: saturation {saturation:.0f}/s, {pairs} pairs of {it.seconds:g} s")
    for share in (0.3, 0.7):
        rate = share * saturation
        found = in_turn(pairs, partial(it.ours, rate), partial(it.theirs, rate))
        print(f" {share:.0%} of saturation, {rate:.1f}/s")
        for percentile in (50.0, 95.0):
            ratio(
                f"p{percentile:g} from the send",
                [
                    (_from_send(ours, percentile), _theirs(other, percentile))
                    for ours, other in found
                ],
                "ms",
            )


def _from_send(level: LoadLevel, percentile: float) -> float:
    [stream] = level.streams
    return next(p.value_ms for p in stream.latencies_from_send if p.percentile == percentile)


def _theirs(opinion: PerfAnalyzerResult, percentile: float) -> float:
    return opinion.p50_ms if percentile == 50 else opinion.p95_ms


def compare_clients(it: Bench, pairs: int) -> None:
    """Lag, CPU and the largest rate on a model that does next to nothing."""
    lags: list[float] = []

    def ours() -> float:
        level = it.ours(PAYLOAD_RATE)
        lags.append(level.client.lag_ms)
        return level.client.cpu_seconds

    cpu = in_turn(
        pairs,
        lambda: it.cpu_ms_per_request(ours),
        lambda: it.cpu_ms_per_request(lambda: it.theirs(PAYLOAD_RATE).cpu_seconds),
    )
    print(f"{it.space.study}: {PAYLOAD_RATE:g}/s, sequence {PAYLOAD_LENGTH}, one client core")
    print(f"  p99 lag: median {median(lags):.2f} ms, worst {max(lags):.2f} of {len(lags)} levels")
    ratio("CPU per 1,000 requests", cpu, "s")
    rates = in_turn(
        pairs,
        lambda: it.saturated().achieved_per_second,
        lambda: it.theirs(None).achieved_per_second,
    )
    ratio(f"rate, {OUTSTANDING} outstanding", rates, "/s")


def bert_space() -> Space:
    """The quickstart's BERT on OpenVINO, batched, one instance of one thread."""
    space = open_space(shipped("search_spaces") / "quickstart.yaml")
    settings = {"runtime": "openvino", "precision": "int8", **BATCHING}
    return fixed_at(replace(space, study="bert, sequence 32"), settings)


def identity_space(folder: Path) -> Space:
    """Takes a BERT's inputs of sequence 512 and answers with two numbers."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", PAYLOAD_LENGTH])
        for name in ("input_ids", "attention_mask")
    ]
    nodes = [
        helper.make_node("Cast", [t.name], [f"{t.name}_float"], to=TensorProto.FLOAT)
        for t in tensors
    ]
    nodes += [
        helper.make_node("ReduceMax", [f"{t.name}_float"], [f"{t.name}_max"], axes=[1], keepdims=1)
        for t in tensors
    ]
    nodes.append(helper.make_node("Concat", [f"{t.name}_max" for t in tensors], ["logits"], axis=1))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "identity", tensors, [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "identity.onnx")
    content = {
        "study": "identity",
        "models": {
            "identity": {
                "source": {"onnx": "identity.onnx"},
                "inputs": {
                    t.name: {"shape": [PAYLOAD_LENGTH], "minimum": 1, "maximum": 30521}
                    for t in tensors
                },
                "lengths": {"fixed": PAYLOAD_LENGTH},
            }
        },
        "price": {"instance_type": "this", "usd_per_hour": 1},
        "parameters": {"runtime": ["onnxruntime"]},
    }
    YAML(typ="safe").dump(content, folder / "identity.yaml")
    return fixed_at(open_space(folder / "identity.yaml"), BATCHING)


_MODEL = """
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32) / 32

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        rows = np.concatenate(inputs)
        for _ in range(64):
            rows = np.tanh(rows @ self.weights)
        parts = np.split(rows, np.cumsum([len(each) for each in inputs])[:-1])
        return [pb.InferenceResponse([pb.Tensor("y", part)]) for part in parts]
"""

_CONFIG = """
backend: "python"
max_batch_size: 16
input { name: "x" data_type: TYPE_FP32 dims: [ 512 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 512 ] }
dynamic_batching { }
instance_group { count: 1 kind: KIND_CPU }
"""


def repository_space(folder: Path) -> Space:
    """A Python model in a repository, as deployed; it multiplies matrices with NumPy."""
    version = folder / "models" / "products" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(_MODEL)
    (version.parent / "config.pbtxt").write_text(_CONFIG)
    content = {
        "study": "repository",
        "models": {
            "products": {
                "source": {"repository": "models", "model": "products"},
                "inputs": {"x": {"data_type": "FP32", "shape": [512], "minimum": -1, "maximum": 1}},
            }
        },
        "price": {"instance_type": "this", "usd_per_hour": 1},
        "parameters": {"instance_count": [1]},
    }
    YAML(typ="safe").dump(content, folder / "repository.yaml")
    return open_space(folder / "repository.yaml")


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each level")
    arguments = parser.parse_args()
    found = shutil.which(NAME)
    if found is None:
        sys.exit(f"{NAME} is not on PATH")
    with tempfile.TemporaryDirectory() as name:
        folder, binary = Path(name), Path(found)
        with bench(bert_space(), folder, binary, arguments.seconds) as it:
            compare_latencies(it, arguments.pairs)
        with bench(repository_space(folder), folder, binary, arguments.seconds) as it:
            compare_latencies(it, arguments.pairs)
        with bench(identity_space(folder), folder, binary, arguments.seconds / 2) as it:
            compare_clients(it, arguments.pairs)


if __name__ == "__main__":
    main()
