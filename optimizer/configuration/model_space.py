"""The valid settings of one model. Pure.

They are every combination of its parameters' values, less what the rules of the runtimes, the
hardware and the space file forbid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.columns import (
    Columns,
    Mask,
    column,
    first_of_equals,
    length,
    selected,
)
from optimizer.configuration.conditions import ConditionError, evaluate, models_in
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.named_parameters import Parameter, names_of
from optimizer.configuration.parameter_definition import (
    ModelScope,
    ServingDraft,
    label,
)
from optimizer.configuration.runtimes import PRECISIONS_OF, STEP_RUNTIMES
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ArtifactUse,
    ModelServing,
    ServerOptions,
)

Position = tuple[int, ...]
"""One point: for each parameter, the position of its value in the parameter's list."""

Rule = Callable[[Columns], Mask]

_DECIDE_THE_ARTIFACT = names_of("artifact", "batcher")

MAX_POINTS = 1_000_000
"""Largest product of the value lists; a larger space is refused, with its size."""

CORES_CONDITION = "instance_count * intra_op_threads <= cores"
"""Holds in every space on a CPU, where more threads than cores slow each other down."""


class EmptySpaceError(ValueError):
    """No point is valid; the message names the rule that excludes the last ones."""


@dataclass(frozen=True)
class MemoryLimit:
    """Memory for instances: of every GPU, or of the machine.

    Attributes:
        mib: for instances.
        instance_mib: measured memory of one instance, by artefact.
        of_machine: whether the instances of all devices share it.
    """

    mib: float
    instance_mib: tuple[tuple[ArtifactSpec, float], ...]
    of_machine: bool

    @property
    def text(self) -> str:
        """Describe it, such as "14592 MiB of memory"."""
        memory = "the machine's memory" if self.of_machine else "memory"
        return f"{self.mib:.0f} MiB of {memory}"

    def needed_mib(
        self, instances: NDArray[np.int64], artifacts: Sequence[ArtifactSpec]
    ) -> NDArray[np.float64]:
        """Return what points need, 0 if unmeasured, shape [points, devices that have their own].

        Args:
            instances: on each device, shape [points, devices].
            artifacts: of the points.
        """
        measured = dict(self.instance_mib)
        each = np.array([measured.get(spec, 0.0) for spec in artifacts])
        sharing = instances.sum(axis=1, keepdims=True) if self.of_machine else instances
        needed: NDArray[np.float64] = sharing * each[:, None]
        return needed


@dataclass(frozen=True)
class Limits:
    """Limits of a model's points.

    Attributes:
        conditions: conditions over parameters, `cores` and `gpus`; all must hold.
        request_size: inferences per request, which the server must execute together.
        excluded: artefacts that failed to build or missed their accuracy.
        failing_batches: by artefact, the smallest batch with wrong answers; points whose
            max_batch_size reaches it are excluded.
        memory: that instances must fit in; empty until an instance was measured.
    """

    conditions: tuple[str, ...] = ()
    request_size: int = 1
    excluded: frozenset[ArtifactSpec] = field(default_factory=frozenset)
    failing_batches: tuple[tuple[ArtifactSpec, int], ...] = ()
    memory: tuple[MemoryLimit, ...] = ()


@dataclass(frozen=True)
class ModelSpace:
    """The valid settings of one model on given hardware.

    Attributes:
        parameters: in the order of the table; ordinal values ascend.
        alone: whether it is the only model on the server.
    """

    parameters: tuple[Parameter, ...]
    limits: Limits
    hardware: Hardware
    alone: bool = True

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.parameters[0].model

    @cached_property
    def scope(self) -> ModelScope:
        """What the meaning of the parameters' values depends on."""
        size = self.limits.request_size
        batches = any(self.parameter("batching").values)
        sizes = self.parameter("max_batch_size").values if batches else (size,)
        return ModelScope(self.model, self.hardware, size, self.alone, cast(tuple[int, ...], sizes))

    @cached_property
    def rows(self) -> Columns:
        """One row for each valid point.

        For each parameter there is a column with its value as conditions compare it ("NAME"), with
        the value's position ("#NAME"), with what the value means ("*NAME"), and with what it comes
        to at the point ("=NAME"), which is the same for all values where there is no effect.

        Raises:
            EmptySpaceError: when no point is valid.
            ConditionError: when a condition names something unknown or is no comparison.
        """
        table = self.table()
        for rule, allowed in self._rules():
            table = selected(table, allowed(table))
            if not length(table):
                raise EmptySpaceError(f"no combination of values is left by the rule: {rule}")
        return selected(table, first_of_equals(self._columns("=", table)))

    @cached_property
    def points(self) -> NDArray[np.int64]:
        """Positions of the valid points, shape [points, parameters]."""
        return self._positions_in(self.rows)

    @cached_property
    def uses(self) -> Mapping[ArtifactSpec, ArtifactUse]:
        """How the valid points serve each artefact."""
        uses: dict[ArtifactSpec, list[ModelServing]] = {}
        for position in map(tuple, self.points.tolist()):
            model = self.serving(position)
            uses.setdefault(model.artifact, []).append(model)
        return {
            spec: ArtifactUse(
                tuple(sorted({model.max_batch_size for model in own})),
                tuple(sorted({model.padding for model in own})),
                max(model.most_instances for model in own),
                any(model.cuda_graphs for model in own),
            )
            for spec, own in uses.items()
        }

    @cached_property
    def instances(self) -> NDArray[np.int64]:
        """Instances on each device, shape [points, devices]; a CPU is one device."""
        return _instances(self.rows)

    def needed_mib(self, limit: MemoryLimit) -> NDArray[np.float64]:
        """Return the memory of the points' instances, shape [points, devices]."""
        return limit.needed_mib(self.instances, self._artifacts(self.rows))

    @cached_property
    def threads(self) -> NDArray[np.int64]:
        """CPU threads of the model's runtime, shape [points].

        They are 0 for instances on GPUs, of a repository, and of the texts around a model.
        """
        if self.scope.kind == "KIND_GPU" or not self.chooses_threads:
            return np.zeros(length(self.rows), dtype=np.int64)
        instances, threads = (self.rows[name] for name in ("instance_count", "intra_op_threads"))
        return np.asarray(instances * threads, dtype=np.int64)

    @property
    def chooses_threads(self) -> bool:
        """Whether the model is built here, and not one of a repository or a step without a model.

        The threads of a model of a repository are its owner's choice.
        """
        [runtime, *_] = cast(tuple[str, ...], self.parameter("runtime").values)
        return runtime not in ("repository", *STEP_RUNTIMES)

    def without_effect(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return in which points one of these parameters has no effect, shape [points]."""
        idle: Mask = np.zeros(length(self.rows), dtype=bool)
        for name in names:
            idle |= self.rows[f"*{name}"] != self.rows[f"={name}"]
        return idle

    def check_conditions(self) -> Iterator[ConditionError]:
        """Yield what is wrong with each condition by itself."""
        table = self.table()
        for condition in self.limits.conditions:
            try:
                self._meets(condition, table)
            except ConditionError as error:
                yield error

    def serving(self, position: Position) -> ModelServing:
        """Return how the model is served at a valid point."""
        return self.draft(position).model()

    def draft(self, position: Sequence[int]) -> ServingDraft:
        """Return what the model, and what it asks of the server, is made of at a valid point."""
        draft = ServingDraft(self.scope)
        for parameter, at in zip(self.parameters, position, strict=True):
            parameter.definition.put(draft, parameter.values[at])
        return draft

    def artifacts_at(self, positions: NDArray[np.int64]) -> set[ArtifactSpec]:
        """Return the artefacts that valid points need, shape [points, parameters]."""
        deciding = [n for n, p in enumerate(self.parameters) if p.name in _DECIDE_THE_ARTIFACT]
        _, rows = np.unique(positions[:, deciding], axis=0, return_index=True)
        return {self.draft(position).model().artifact for position in positions[rows].tolist()}

    @cached_property
    def _positions(self) -> dict[tuple[ModelServing, ServerOptions], Position]:
        rows = map(tuple, self.points.tolist())
        drafts = ((self.draft(row), row) for row in rows)
        return {(draft.model(), draft.server()): row for draft, row in drafts}

    def position_of(self, model: ModelServing, options: ServerOptions) -> Position | None:
        """Return the valid point that stands for a model and its options, None without one."""
        return self._positions.get((model, options))

    def parameter(self, name: str) -> Parameter:
        """Return the parameter of this name."""
        return next(p for p in self.parameters if p.name == name)

    def _columns(self, mark: str, rows: Columns) -> list[NDArray[Any]]:
        return [rows[f"{mark}{p.name}"] for p in self.parameters]

    def _positions_in(self, rows: Columns) -> NDArray[np.int64]:
        return np.stack(self._columns("#", rows), axis=1)

    def _meets(self, condition: str, rows: Columns) -> Mask:
        """Return which rows meet a condition that names no model, or this one."""
        if not models_in(condition, [self.model]):
            return evaluate(condition, rows)
        named = {f"{self.model}.{p.name}": rows[p.name] for p in self.parameters}
        return evaluate(condition, {**rows, **named}, [self.model])

    def table(self) -> Columns:
        """Make a row for each combination of values, with the columns of `rows`."""
        lengths = [len(p.values) for p in self.parameters]
        size = math.prod(lengths)
        if size > MAX_POINTS:
            raise EmptySpaceError(f"must have at most {MAX_POINTS:,} combinations, got {size:,}")
        table = hardware_columns(self.hardware, size)
        for parameter, at in zip(self.parameters, np.indices(lengths), strict=True):
            shown = parameter.definition.number or label
            table[f"#{parameter.name}"] = at.ravel()
            table[parameter.name] = column([*map(shown, parameter.values)])[at.ravel()]
        for parameter in self.parameters:
            self._add_meaning(table, parameter)
        return table

    def _add_meaning(self, table: dict[str, NDArray[Any]], parameter: Parameter) -> None:
        name, own, scope = parameter.name, parameter.definition, self.scope
        meaning = table[name]
        if own.meaning is not None:
            meanings = {
                (at, size): own.meaning(value, size, scope)
                for at, value in enumerate(parameter.values)
                for size in cast(tuple[int, ...], self.parameter("max_batch_size").values)
            }
            pairs = zip(table[f"#{name}"], table["max_batch_size"], strict=True)
            meaning = column([meanings[pair] for pair in pairs])
        table[f"*{name}"] = meaning
        idle = column([own.idle_value(scope)])
        table[f"={name}"] = np.where(own.effect.rows(table, scope), meaning, idle)

    def _rules(self) -> Iterator[tuple[str, Rule]]:
        """Yield (what the rule says, mask of the rows that it allows), in this order."""
        size = self.limits.request_size
        yield "the runtime serves the precision", self._runtime_has_precision
        yield f"max_batch_size is at least traffic.batch_size ({size})", self._takes_a_request
        yield "preferred_batch_sizes are from 1 to max_batch_size", _preferred_sizes_fit
        yield from self._hardware_rules()
        for condition in self.limits.conditions:
            yield condition, partial(self._meets, condition)
        for spec in sorted(self.limits.excluded, key=lambda spec: spec.label):
            yield f"{spec.label} is excluded", partial(self._needs_another, spec)
        for spec, size in self.limits.failing_batches:
            rule = f"max_batch_size of {spec.label} is below {size}"
            yield rule, partial(self._stays_below, spec, size)

    def _hardware_rules(self) -> Iterator[tuple[str, Rule]]:
        devices = len(self.hardware.gpus)
        yield f"instance_count lists one number for each of {devices} GPUs", self._counts_fit
        if self.scope.kind == "KIND_CPU" and self.chooses_threads:
            yield CORES_CONDITION, partial(evaluate, CORES_CONDITION)
        for limit in self.limits.memory:
            yield f"the instances fit in {limit.text}", partial(self._fits_in_memory, limit)

    def _runtime_has_precision(self, rows: Columns) -> Mask:
        able = PRECISIONS_OF[self.scope.kind]
        pairs = zip(rows["runtime"], rows["precision"], strict=True)
        return np.array([p in able.get(r, ()) for r, p in pairs])

    def _takes_a_request(self, rows: Columns) -> Mask:
        suffices: Mask = ~rows["batching"] | (rows["max_batch_size"] >= self.limits.request_size)
        return suffices

    def _counts_fit(self, rows: Columns) -> Mask:
        listed = self.parameter("instance_count").values
        devices = len(self.hardware.gpus)
        fit = [not isinstance(v, tuple) or (len(v) == devices and any(v)) for v in listed]
        return np.array(fit)[rows["#instance_count"]]

    def _fits_in_memory(self, limit: MemoryLimit, rows: Columns) -> Mask:
        needed = limit.needed_mib(_instances(rows), self._artifacts(rows))
        return np.asarray((needed <= limit.mib).all(axis=1))

    def _needs_another(self, spec: ArtifactSpec, rows: Columns) -> Mask:
        return np.array([own != spec for own in self._artifacts(rows)])

    def _stays_below(self, spec: ArtifactSpec, size: int, rows: Columns) -> Mask:
        pairs = zip(self._artifacts(rows), rows["=max_batch_size"], strict=True)
        return np.array([own != spec or largest < size for own, largest in pairs])

    def _artifacts(self, rows: Columns) -> list[ArtifactSpec]:
        """Return the artefact that each row needs."""
        deciding = zip(*(rows[f"#{name}"] for name in _DECIDE_THE_ARTIFACT), strict=True)
        specs: dict[tuple[int, ...], ArtifactSpec] = {}
        artifacts = []
        for key, position in zip(deciding, self._positions_in(rows).tolist(), strict=True):
            if key not in specs:
                specs[key] = self.draft(position).model().artifact
            artifacts.append(specs[key])
        return artifacts


def _instances(rows: Columns) -> NDArray[np.int64]:
    """Return the instances on each device, shape [points, devices]."""
    return np.array(rows["*instance_count"].tolist(), dtype=np.int64)


def hardware_columns(hardware: Hardware, rows: int) -> dict[str, NDArray[Any]]:
    """Return what conditions call `cores` and `gpus`, as columns of a number of rows."""
    return {"cores": np.full(rows, hardware.cores), "gpus": np.full(rows, len(hardware.gpus))}


def _preferred_sizes_fit(rows: Columns) -> Mask:
    columns = zip(rows["=preferred_batch_sizes"], rows["max_batch_size"], strict=True)
    fit = [
        not isinstance(sizes, tuple) or all(0 < size <= largest for size in sizes)
        for sizes, largest in columns
    ]
    return np.array(fit)
