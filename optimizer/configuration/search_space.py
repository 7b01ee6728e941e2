"""The finite set of serving configurations that a study may propose. Pure.

Every valid point is one row of `SearchSpace.points` (positions in the parameters' lists of values).
No two rows stand for the same `ServingConfig`: a parameter without effect, such as a queue delay
without batching, has one value. With several models, a point consists of one point of each model.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import cast

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.conditions import ConditionError, models_in
from optimizer.configuration.deployed_settings import concerns, is_of_built_model
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.joint_points import JointPoints
from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.model_space import (
    Limits,
    MemoryLimit,
    ModelSpace,
    Position,
)
from optimizer.configuration.named_parameters import Parameter, parameters_in_order
from optimizer.configuration.parameter_definition import Value, shared
from optimizer.configuration.runtimes import STEP_RUNTIMES
from optimizer.configuration.runtimes.spec import Kind
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ArtifactUse,
    ModelServing,
    ServerOptions,
    ServingConfig,
)


@dataclass(frozen=True)
class SearchSpace:
    """The valid points of the parameters of one or more models on given hardware.

    Attributes:
        parameters: model by model, each in the order of the table; ordinal values ascend.
        limits: limits of every model. A condition that names no model is one of each but ensembles
            and the steps around the model of a generated pipeline, and one that names several, as
            MODEL.PARAMETER, is of their combinations.
        graph: the composed models among the models; None without any.
    """

    parameters: tuple[Parameter, ...]
    hardware: Hardware
    limits: Limits = field(default_factory=Limits)
    graph: ModelGraph | None = None

    @cached_property
    def models(self) -> tuple[ModelSpace, ...]:
        """The space of each model by itself."""
        own = [tuple(group) for _, group in groupby(self.parameters, key=lambda p: p.model)]
        on_cpu = replace(self.hardware, gpus=())
        return tuple(
            ModelSpace(
                parameters,
                replace(self.limits, conditions=self._conditions_of(parameters)),
                on_cpu if _is_step(parameters) else self.hardware,
                len(own) == 1,
            )
            for parameters in own
        )

    @cached_property
    def _models_of_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """The models that each condition names."""
        names = list(dict.fromkeys(parameter.model for parameter in self.parameters))
        return {condition: models_in(condition, names) for condition in self.limits.conditions}

    def _conditions_of(self, parameters: Sequence[Parameter]) -> tuple[str, ...]:
        """Return the conditions of one model alone."""
        model, graph = parameters[0].model, self.graph or NO_GRAPH
        common = model not in graph.ensemble_names and not _is_step(parameters)
        return tuple(
            condition
            for condition, named in self._models_of_conditions.items()
            if named == (model,) or (common and not named)
        )

    @property
    def _joint_conditions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The conditions on several models, and the models that each names."""
        return ((c, named) for c, named in self._models_of_conditions.items() if len(named) > 1)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the models that clients send requests to: all but steps."""
        steps = (self.graph or NO_GRAPH).step_names
        return tuple(model.model for model in self.models if model.model not in steps)

    def kind_of(self, model: str) -> Kind:
        """Return where instances of a model run."""
        return next(own.scope.kind for own in self.models if own.model == model)

    def concerns(self, model: str, parameter: str) -> bool:
        """Return whether a model has a parameter: those of a pipeline do not have each."""
        graph = self.graph or NO_GRAPH
        ensemble, step = model in graph.ensemble_names, model in graph.step_names
        if not (step or model in graph.names):
            return True
        built = {own.model for own in self.models if own.chooses_threads}
        if built and model not in built and is_of_built_model(parameter):
            return False
        return concerns(parameter, ensemble=ensemble, step=step)

    @cached_property
    def points(self) -> NDArray[np.int64]:
        """All valid points, shape [points, parameters].

        Raises:
            EmptySpaceError: when no point is valid.
            ConditionError: when a condition names something unknown or is no comparison.
        """
        if len(self.models) == 1:
            return self.models[0].points
        together = zip(self.models, self._together.rows, strict=True)
        return np.hstack([model.points[own] for model, own in together])

    @property
    def _together(self) -> JointPoints:
        """The combinations of the models' points."""
        return JointPoints(self.models, self.hardware, self.limits, tuple(self._joint_conditions))

    def check_conditions(self) -> Iterator[ConditionError]:
        """Yield what is wrong with each condition by itself."""
        wrong = itertools.chain.from_iterable(model.check_conditions() for model in self.models)
        errors = (*wrong, *self._together.errors)
        return iter({error.args[1]: error for error in errors}.values())

    @cached_property
    def _configs(self) -> dict[Position, ServingConfig]:
        return {}

    def config(self, position: Position) -> ServingConfig:
        """Return the configuration that a valid point stands for."""
        if position not in self._configs:
            drafts = [model.draft(position[columns]) for model, columns in self.columns()]
            self._configs[position] = ServingConfig(
                models=tuple(draft.model() for draft in drafts),
                graph=self.graph,
                server=_of_all([draft.server() for draft in drafts]),
            )
        return self._configs[position]

    def nearest(
        self, position: Sequence[int], excluding: Collection[Position] = ()
    ) -> Position | None:
        """Return the valid point nearest to any combination of positions, see `by_distance`.

        Args:
            excluding: valid points that must not be returned.

        Returns:
            None when every valid point is excluded.
        """
        if not excluding:
            return self.at(int(np.argmin(self._distances(position))))
        points = self.by_distance(position)
        return next((point for point in points if point not in excluding), None)

    def by_distance(self, position: Sequence[int]) -> Iterator[Position]:
        """Yield the valid points, those nearest to a combination of positions first.

        The distance is in steps along the list of an ordinal parameter, and 1 between any two
        values of another parameter.
        """
        # A stable sort yields equally near points in the same order every time.
        for row in np.argsort(self._distances(position), kind="stable"):
            yield self.at(int(row))

    def _distances(self, position: Sequence[int]) -> NDArray[np.float64]:
        distances = np.zeros(len(self.points))
        for column, (parameter, at) in enumerate(zip(self.parameters, position, strict=True)):
            steps = np.abs(self.points[:, column] - at)
            span = max(1, len(parameter.values) - 1)
            distances += steps / span if parameter.ordinal else steps > 0
        return distances

    def at(self, row: int) -> Position:
        """Return the valid point in a row of `points`."""
        return tuple(int(i) for i in self.points[row])

    @cached_property
    def row_of(self) -> Mapping[Position, int]:
        """Row of each valid point in `points`; the inverse of `at`."""
        return {tuple(point): row for row, point in enumerate(self.points.tolist())}

    @cached_property
    def baseline(self) -> Position:
        """The point nearest to Triton's defaults, as someone serves who changes nothing.

        It has the highest precision listed, the unoptimised runtime (PyTorch) if listed, one
        instance with all cores, and no batching.
        """
        nearest = self.baseline_with_effect(())
        assert nearest is not None, "nothing was excluded and a space is never empty"
        return nearest

    def baseline_with_effect(self, keys: Collection[str]) -> Position | None:
        """Return the point nearest to the baseline in which some parameters have an effect.

        Args:
            keys: parameters as "model.parameter".

        Returns:
            None if there is no point in which all of them have an effect.
        """
        computing = sum(model.chooses_threads for model in self.models)
        cores = self.hardware.cores // max(1, computing)
        wanted = [
            _closest(
                p,
                p.deployed
                if p.deployed is not None
                else p.definition.baseline_value(p.values, cores),
            )
            for p in self.parameters
        ]
        idle = np.zeros(len(self.points), dtype=bool)
        for model, columns in self.columns():
            names = [p.name for p in model.parameters if p.key in keys]
            without = {tuple(p) for p in model.points[model.without_effect(names)].tolist()}
            idle |= [tuple(own) in without for own in self.points[:, columns].tolist()]
        return self.nearest(wanted, {self.at(int(row)) for row in np.flatnonzero(idle)})

    @cached_property
    def artifacts(self) -> tuple[ArtifactSpec, ...]:
        """Every artefact that a valid point needs: the baseline's first, the others by label."""
        needed = (own.artifacts_at(self.points[:, columns]) for own, columns in self.columns())
        specs = set[ArtifactSpec]().union(*needed)
        first = [model.artifact for model in self.config(self.baseline).models]
        return tuple(sorted(specs, key=lambda spec: (spec not in first, spec.label)))

    def completed(self) -> SearchSpace:
        """Return the space with the defaults of parameters that it does not list.

        A space that was stored before a parameter was added to the table lacks it.
        """
        own = (
            parameters_in_order(
                model.model,
                {p.name: p.values for p in model.parameters},
                {p.name: p.deployed for p in model.parameters},
            )
            for model in self.models
        )
        return replace(self, parameters=tuple(itertools.chain.from_iterable(own)))

    def cache_bytes(self, target: str) -> int:
        """Return the largest response cache that requests to a model can meet; 0 without one."""
        names = {target} | (self.graph or NO_GRAPH).below(target)
        cached = (
            model
            for model in self.models
            if model.model in names and any(model.parameter("response_cache").values)
        )
        sizes = (cast(int, max(each.parameter("response_cache_mib").values)) for each in cached)
        return max(sizes, default=0) * 2**20

    def columns(self) -> Iterator[tuple[ModelSpace, slice]]:
        """Yield each model's own space, and the columns of `points` that belong to it."""
        start = 0
        for model in self.models:
            yield model, slice(start, start + len(model.parameters))
            start += len(model.parameters)

    def without(self, artifacts: Collection[ArtifactSpec]) -> SearchSpace:
        """Return the space less the points that need one of `artifacts`."""
        excluded = self.limits.excluded | frozenset(artifacts)
        return replace(self, limits=replace(self.limits, excluded=excluded))

    def without_batches(self, failing: Mapping[ArtifactSpec, int]) -> SearchSpace:
        """Return the space less the points whose max_batch_size reaches a failing batch.

        Args:
            failing: by artefact, the smallest batch with wrong answers.
        """
        smallest = {**dict(self.limits.failing_batches), **failing}
        return replace(self, limits=replace(self.limits, failing_batches=tuple(smallest.items())))

    def use_of(self, artifact: ArtifactSpec) -> ArtifactUse:
        """Return how the points of the artefact's model serve it."""
        model = next(model for model in self.models if model.model == artifact.model)
        return model.uses[artifact]

    def within_memory(
        self,
        memory_mib: float,
        instance_mib: Mapping[ArtifactSpec, float],
        *,
        of_machine: bool = False,
    ) -> SearchSpace:
        """Return the space less the points whose instances do not fit in memory.

        Args:
            memory_mib: of a device, or of the machine for the instances of all devices.
            instance_mib: measured memory of one instance.
        """
        limit = MemoryLimit(memory_mib, tuple(instance_mib.items()), of_machine)
        limits = replace(self.limits, memory=(*self.limits.memory, limit))
        return replace(self, limits=limits)

    def position_of(self, config: ServingConfig) -> Position | None:
        """Return the point that stands for a configuration, None if there is none."""
        if [model.name for model in config.models] != [space.model for space in self.models]:
            return None
        position: Position = ()
        options = [_own_options(model, config.server) for model in config.models]
        for space, model, asked in zip(self.models, config.models, options, strict=True):
            own = space.position_of(model, asked)
            if own is None:
                return None
            position += own
        same = config.graph == self.graph and config.server == _of_all(options)
        return position if same and position in self.row_of else None

    def __len__(self) -> int:
        return len(self.points)


def _of_all(options: Sequence[ServerOptions]) -> ServerOptions:
    """Return the server's options for what each of its models asks of it."""
    return shared(
        ServerOptions(
            tuple(sorted({each for own in options for each in own.backend_config})),
            options[0].executions_per_device,
            max((own.cache_bytes for own in options if own.cache_bytes), default=None),
        )
    )


def _own_options(model: ModelServing, server: ServerOptions) -> ServerOptions:
    """Return what one model asks of a server that has these options."""
    return ServerOptions(
        server.backend_config if model.artifact.runtime == "tensorrt" else (),
        server.executions_per_device,
        server.cache_bytes if model.cache else None,
    )


def _is_step(parameters: Sequence[Parameter]) -> bool:
    """Return whether parameters are those of a step that executes no model, which has no GPU."""
    return any(p.name == "runtime" and not STEP_RUNTIMES.isdisjoint(p.values) for p in parameters)


def _closest(parameter: Parameter, wanted: Value | None) -> int:
    """Return the position of the wanted value, else of the nearest number, else the first."""
    if wanted is not None and wanted in parameter.values:
        return parameter.values.index(wanted)
    if parameter.ordinal and isinstance(wanted, int):
        numbers = cast(tuple[int, ...], parameter.values)
        return min(range(len(numbers)), key=lambda i: abs(numbers[i] - wanted))
    return 0
