"""The eight configurations of the published benchmark, on the machine at hand.

{unoptimised, compiled} x {dynamic batching off, on with the server's defaults} x {one instance,
two}. On a GPU these are PyTorch and TensorRT, as published; on a CPU PyTorch and OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.model_space import Position
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ArtifactSpec, ServingConfig
from optimizer.space_file.chosen_point import only_point

_MUST_MATCH = ("runtime", "precision", "batching", "instance_count")
"""Parameters that define a configuration of the grid; the others may differ."""

_SHORT = {"pytorch": "pt", "tensorrt": "trt", "openvino": "ov"}


@dataclass(frozen=True)
class NamedConfiguration:
    """A configuration under its name in the published table."""

    name: str
    config: ServingConfig

    @property
    def artifacts(self) -> frozenset[ArtifactSpec]:
        """The artefacts that it needs."""
        return frozenset(model.artifact for model in self.config.models)


def published_configurations(space: SearchSpace) -> tuple[NamedConfiguration, ...]:
    """Return the eight configurations in FP32, with the largest batch that the space lists.

    They are points of `published_space(space)`.

    Raises:
        UsageError: when the space's models cannot be served so, see `only_point`.
    """
    grid = published_space(space)
    return tuple(
        NamedConfiguration(name, grid.config(position))
        for name, position in published_positions(grid).items()
        if position is not None
    )


def _values_by_name(space: SearchSpace) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the name and the parameter values of each configuration."""
    for runtime in ("pytorch", "tensorrt" if space.hardware.gpus else "openvino"):
        for instances in (1, 2):
            for batching in (False, True):
                values = {
                    "runtime": runtime,
                    "precision": "fp32",
                    "batching": str(batching).lower(),
                    "preferred_batch_sizes": "none",
                    "max_queue_delay_us": "0",
                    "instance_count": str(instances),
                    "intra_op_threads": str(max(1, space.hardware.cores // instances)),
                }
                for model in space.models:
                    sizes = model.parameter("max_batch_size").values
                    values[f"{model.model}.max_batch_size"] = str(sizes[-1])
                yield _name(runtime, batching, instances), values


def _name(runtime: str, batching: bool, instances: int) -> str:
    """Return the published name, such as "pt-ig-db", but "trt-db-ig"."""
    features = ["db"] * batching + ["ig"] * (instances > 1)
    if runtime == "pytorch":
        features.reverse()
    return "-".join([_SHORT[runtime], *(features or ["base"])])


def published_space(space: SearchSpace) -> SearchSpace:
    """Return the smallest space that contains the eight configurations. Raises UsageError."""
    points = [only_point(space, values, with_effect=False) for _, values in _values_by_name(space)]
    parameters = []
    for same in zip(*(point.parameters for point in points), strict=True):
        values = list(dict.fromkeys(value for each in same for value in each.values))
        if all(each.ordinal for each in same):
            values.sort()
        parameters.append(replace(same[0], values=tuple(values)))
    return SearchSpace(tuple(parameters), space.hardware, points[0].limits)


def published_positions(space: SearchSpace) -> Mapping[str, Position | None]:
    """Return by name the points of a space that are nearest to the eight configurations.

    None stands for a configuration whose runtime, precision, batching or instance count is not in
    the space.
    """
    return {name: _nearest(space, values) for name, values in _values_by_name(space)}


def _nearest(space: SearchSpace, values: Mapping[str, str]) -> Position | None:
    wanted = []
    for parameter in space.parameters:
        text = values.get(parameter.key, values.get(parameter.name))
        labels = [str(label(value)).lower() for value in parameter.values]
        if text in labels:
            wanted.append(labels.index(text))
        elif parameter.name in _MUST_MATCH:
            return None
        else:
            wanted.append(0)
    nearest = space.nearest(wanted)
    assert nearest is not None, "no point is excluded"
    return nearest if _matches(space, nearest, wanted) else None


def _matches(space: SearchSpace, nearest: Position, wanted: Sequence[int]) -> bool:
    """Whether the nearest valid point agrees in the parameters that must match."""
    pairs = zip(space.parameters, nearest, wanted, strict=True)
    return all(at == own for parameter, at, own in pairs if parameter.name in _MUST_MATCH)
