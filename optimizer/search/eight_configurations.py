"""The eight configurations of the published benchmark, on the machine that is at hand.

{unoptimised, compiled} x {dynamic batching off, on with the server's defaults} x {one instance,
two}. On a GPU that is PyTorch against TensorRT, as published; on a CPU PyTorch against OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optimizer.hardware import Hardware
from optimizer.search_space import SearchSpace
from optimizer.serving_config import ServingConfig
from optimizer.space_file import only_point

_SHORT = {"pytorch": "pt", "tensorrt": "trt", "openvino": "ov"}


@dataclass(frozen=True)
class NamedConfiguration:
    """One of the eight, by the name that it has in the published table."""

    name: str
    config: ServingConfig


def eight_configurations(space: SearchSpace) -> tuple[NamedConfiguration, ...]:
    """The eight, in FP32, with the largest batch that the space lists.

    Raises:
        UsageError: when the space's models cannot be served so, see `only_point`.
    """
    found = []
    for name, settings in _settings(space):
        point = only_point(space, settings)
        found.append(NamedConfiguration(name, point.config(point.baseline)))
    return tuple(found)


def _settings(space: SearchSpace) -> Iterator[tuple[str, Mapping[str, str]]]:
    for runtime in ("pytorch", "tensorrt" if space.hardware.gpus else "openvino"):
        for instances in (1, 2):
            for batching in (False, True):
                settings = {
                    "runtime": runtime,
                    "precision": "fp32",
                    "batching": str(batching).lower(),
                    "preferred_batch_sizes": "none",
                    "max_queue_delay_us": "0",
                    "instance_count": str(instances),
                    "intra_op_threads": str(_threads(space.hardware, instances)),
                }
                for model in space.models:
                    sizes = model.parameter("max_batch_size").values
                    settings[f"{model.model}.max_batch_size"] = str(sizes[-1])
                yield _name(runtime, batching, instances), settings


def _threads(hardware: Hardware, instances: int) -> int:
    """All cores, shared among the instances."""
    return max(1, hardware.cores // instances)


def _name(runtime: str, batching: bool, instances: int) -> str:
    """As published: "pt-ig-db", but "trt-db-ig"."""
    features = ["db"] * batching + ["ig"] * (instances > 1)
    if runtime == "pytorch":
        features.reverse()
    return "-".join([_SHORT[runtime], *(features or ["base"])])
