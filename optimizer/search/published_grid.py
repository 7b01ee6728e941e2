"""The eight configurations of the published benchmark, on the machine that is at hand.

{unoptimised, compiled} x {dynamic batching off, on with the server's defaults} x {one instance,
two}. On a GPU that is PyTorch against TensorRT, as published; on a CPU PyTorch against OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import Position
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, ServingConfig
from optimizer.space_file.reader import only_point

_MUST_MATCH = ("runtime", "precision", "batching", "instance_count")
"""What makes one of the eight what it is."""

_SHORT = {"pytorch": "pt", "tensorrt": "trt", "openvino": "ov"}


@dataclass(frozen=True)
class NamedConfiguration:
    """One of the eight, by the name that it has in the published table."""

    name: str
    config: ServingConfig

    @property
    def artifacts(self) -> frozenset[ArtifactSpec]:
        """Files that it needs."""
        return frozenset(model.artifact for model in self.config.models)


def published_configurations(space: SearchSpace) -> tuple[NamedConfiguration, ...]:
    """The eight, in FP32, with the largest batch that the space lists; points of `published_space`.

    Raises:
        UsageError: when the space's models cannot be served so, see `only_point`.
    """
    served = published_space(space)
    found = published_positions(served).items()
    return tuple(
        NamedConfiguration(name, served.config(at)) for name, at in found if at is not None
    )


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


def published_space(space: SearchSpace) -> SearchSpace:
    """A space that holds at least the eight: what must be built for them. Raises UsageError."""
    points = [only_point(space, own, with_effect=False) for _, own in _settings(space)]
    parameters = []
    for same in zip(*(point.parameters for point in points), strict=True):
        values = list(dict.fromkeys(value for each in same for value in each.values))
        if all(each.ordinal for each in same):
            values.sort()
        parameters.append(replace(same[0], values=tuple(values)))
    return SearchSpace(tuple(parameters), space.hardware, points[0].limits)


def published_positions(space: SearchSpace) -> Mapping[str, Position | None]:
    """By name: the points of a space that come nearest to the eight.

    None where the space does not hold their runtime, precision, batching or number of instances.
    """
    return {name: _nearest(space, settings) for name, settings in _settings(space)}


def _nearest(space: SearchSpace, settings: Mapping[str, str]) -> Position | None:
    wanted = []
    for parameter in space.parameters:
        text = settings.get(parameter.key, settings.get(parameter.name))
        labels = [str(label(value)).lower() for value in parameter.values]
        if text in labels:
            wanted.append(labels.index(text))
        elif parameter.name in _MUST_MATCH:
            return None
        else:
            wanted.append(0)
    found = space.nearest(wanted)
    assert found is not None, "no point is excluded"
    return found if _matches(space, found, wanted) else None


def _matches(space: SearchSpace, found: Position, wanted: Sequence[int]) -> bool:
    """Whether the nearest valid point still is what was wanted."""
    pairs = zip(space.parameters, found, wanted, strict=True)
    return all(at == own for parameter, at, own in pairs if parameter.name in _MUST_MATCH)
