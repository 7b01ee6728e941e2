"""The valid settings of one model. Pure.

They are every combination of its parameters' values, less what the rules of the runtimes, the
hardware and the space file forbid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optimizer.configuration.conditions import ConditionError, evaluate
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.parameters import (
    PARAMETER_NAMES,
    UNSEARCHED,
    Parameter,
    ParameterName,
    Value,
    label,
    preferred_sizes,
)
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ArtifactUse,
    Batching,
    EngineProfile,
    InstanceGroup,
    ModelServing,
    ServerOptions,
)
from optimizer.runtimes import PRECISIONS_OF, RUNTIMES, Runtime
from optimizer.runtimes.spec import Kind, Precision

Position = tuple[int, ...]
"""One point: for each parameter, the position of its value in the parameter's list."""

Rule = Callable[[pd.DataFrame], "pd.Series[bool]"]

MAX_POINTS = 1_000_000
"""Largest product of the value lists; a larger space is refused, with its size."""

CORES_CONDITION = "instance_count * intra_op_threads <= cores"
"""Holds in every space on a CPU: more threads than cores lose to their own contention."""


_OF_ENGINES: tuple[ParameterName, ...] = ("engine_profile", "cuda_graphs", "execution_policy")


class EmptySpaceError(ValueError):
    """No point meets the conditions; the message says which one leaves none."""


_POSITIONS = [f"#{name}" for name in PARAMETER_NAMES]
_EFFECTIVE = [f"={name}" for name in PARAMETER_NAMES]


@dataclass(frozen=True)
class Limits:
    """What the points of a model must keep within.

    Attributes:
        conditions: expressions over parameter names, `cores` and `gpus`; all must hold.
        request_size: inferences that one request asks for; the server must take them together.
        excluded: artefacts that left the space because they failed to build or missed accuracy.
        failing_batches: by artefact, the smallest batch that it did not answer rightly; points
            whose max_batch_size reaches it are left out.
        memory_mib: of each device, for instances; None where it is not known.
        instance_mib: memory of one instance by artefact, as it was measured.
    """

    conditions: tuple[str, ...] = ()
    request_size: int = 1
    excluded: frozenset[ArtifactSpec] = field(default_factory=frozenset)
    failing_batches: tuple[tuple[ArtifactSpec, int], ...] = ()
    memory_mib: float | None = None
    instance_mib: tuple[tuple[ArtifactSpec, float], ...] = ()


@dataclass(frozen=True)
class ModelSpace:
    """The valid settings of one model on given hardware.

    Attributes:
        parameters: in the fixed order; ordinal values ascend.
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

    @property
    def kind(self) -> Kind:
        """Where its instances run: on the GPUs where there are any."""
        return "KIND_GPU" if self.hardware.gpus else "KIND_CPU"

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row for each valid point, with what every setting comes to.

        Raises:
            EmptySpaceError: when no point is valid.
            ConditionError: when a condition names something unknown or is no comparison.
        """
        table = self._table()
        for rule, kept in self._rules():
            table = table[kept(table)]
            if table.empty:
                raise EmptySpaceError(f"no combination of values is left by the rule: {rule}")
        return table.drop_duplicates(_EFFECTIVE).reset_index(drop=True)

    @cached_property
    def points(self) -> NDArray[np.int64]:
        """Positions of the valid points, shape [points, parameters]."""
        return self.rows[_POSITIONS].to_numpy(dtype=np.int64)

    @cached_property
    def uses(self) -> Mapping[ArtifactSpec, ArtifactUse]:
        """How the valid points serve each artefact."""
        paddings = self.parameter("padding").values
        found: dict[ArtifactSpec, set[tuple[int, Value]]] = {}
        columns = (self._artifacts(self.rows), self.rows["=max_batch_size"], self.rows["#padding"])
        for spec, largest, padding in zip(*columns, strict=True):
            found.setdefault(spec, set()).add((int(largest), paddings[padding]))
        return {spec: _use(own) for spec, own in found.items()}

    @cached_property
    def instances(self) -> NDArray[np.int64]:
        """Instances on each device, shape [points, devices]; a CPU is one device."""
        return np.array([self._counts(v) for v in self.rows["*instances"]], dtype=np.int64)

    @cached_property
    def memory_mib(self) -> NDArray[np.float64]:
        """Memory that the instances need on each device, as far as known: [points, devices]."""
        known = dict(self.limits.instance_mib)
        rows = map(tuple, self.points.tolist())
        each = [known.get(self.serving(row).artifact, 0.0) for row in rows]
        needed: NDArray[np.float64] = self.instances * np.array(each)[:, None]
        return needed

    @cached_property
    def threads(self) -> NDArray[np.int64]:
        """CPU threads that compute, shape [points]; none are counted for instances on GPUs."""
        if self.kind == "KIND_GPU":
            return np.zeros(len(self.rows), dtype=np.int64)
        return (self.rows.instance_count * self.rows.intra_op_threads).to_numpy(dtype=np.int64)

    def without_effect(self, names: Sequence[ParameterName]) -> NDArray[np.bool_]:
        """Return in which points one of these parameters has no effect, shape [points]."""
        rows = self.rows
        idle = np.zeros(len(rows), dtype=bool)
        for name in names:
            if name == "preferred_batch_sizes":
                idle |= (rows["=preferred_batch_sizes"] == "") & rows.sizes.astype(bool)
            elif name != "instance_count":
                idle |= (rows[name] != rows[f"={name}"]).to_numpy(dtype=bool)
        return idle

    def check_conditions(self) -> Iterator[ConditionError]:
        """What is wrong with the conditions themselves, each on its own."""
        table = self._table()
        for condition in self.limits.conditions:
            try:
                evaluate(condition, table)
            except ConditionError as error:
                yield error

    def serving(self, position: Position) -> ModelServing:
        """How the model is served at a valid point."""
        return self.serving_with(self._chosen(position))

    def serving_with(self, chosen: Mapping[str, Value]) -> ModelServing:
        """How it is served with one value per parameter; settings without effect are left out."""
        request_size = self.limits.request_size
        largest = cast(int, chosen["max_batch_size"])
        batching = None
        if chosen["batching"] and largest > request_size:
            preferred = preferred_sizes(chosen["preferred_batch_sizes"], largest)
            batching = Batching(preferred, cast(int, chosen["max_queue_delay_us"]))
        else:
            largest = request_size
        padding = chosen["padding"]
        runtime = cast(Runtime, chosen["runtime"])
        precision = cast(Precision, chosen["precision"])
        return ModelServing(
            name=self.model,
            artifact=self._artifact(runtime, precision, str(chosen["engine_profile"]), largest),
            max_batch_size=largest,
            batching=batching,
            groups=self._groups(chosen),
            padding=padding if isinstance(padding, tuple) else (),
            warmup_batch_sizes=tuple(sorted({1, largest})),
            cuda_graphs=runtime == "tensorrt" and bool(chosen["cuda_graphs"]),
            rate_limited=_executions(chosen) is not None,
        )

    def _groups(self, chosen: Mapping[str, Value]) -> tuple[InstanceGroup, ...]:
        """On a CPU one; on GPUs one for each number of instances, with the GPUs that have it."""
        counts = self._counts(chosen["instance_count"])
        if self.kind == "KIND_CPU":
            threads = cast(int, chosen["intra_op_threads"])
            return (InstanceGroup("KIND_CPU", counts[0], (), threads),)
        return tuple(
            InstanceGroup("KIND_GPU", count, tuple(g for g, n in enumerate(counts) if n == count))
            for count in sorted({*counts} - {0}, reverse=True)
        )

    def options(self, position: Position) -> ServerOptions:
        """What the point asks of the server itself."""
        chosen = self._chosen(position)
        blocking = chosen["runtime"] == "tensorrt" and chosen["execution_policy"] == "blocking"
        setting = ("tensorrt", "execution-policy", "BLOCKING")
        return ServerOptions((setting,) if blocking else (), _executions(chosen))

    @cached_property
    def _positions(self) -> dict[tuple[ModelServing, ServerOptions], Position]:
        rows = map(tuple, self.points.tolist())
        return {(self.serving(row), self.options(row)): row for row in rows}

    def position_of(self, model: ModelServing, server: ServerOptions) -> Position | None:
        """The valid point that stands for a model as it is served, on a server with `server`."""
        own = server if model.artifact.runtime == "tensorrt" else replace(server, backend_config=())
        return self._positions.get((model, own))

    def _chosen(self, position: Position) -> dict[str, Value]:
        pairs = zip(self.parameters, position, strict=True)
        return {p.name: p.values[at] for p, at in pairs}

    def parameter(self, name: ParameterName) -> Parameter:
        """The parameter of this name."""
        return next(p for p in self.parameters if p.name == name)

    def _table(self) -> pd.DataFrame:
        size = math.prod(len(p.values) for p in self.parameters)
        if size > MAX_POINTS:
            raise EmptySpaceError(f"must have at most {MAX_POINTS:,} combinations, got {size:,}")
        grid = itertools.product(*(range(len(p.values)) for p in self.parameters))
        table = pd.DataFrame(list(grid), columns=_POSITIONS)
        for parameter in self.parameters:
            table[parameter.name] = _column(table, parameter, label)
        counts = self.parameter("instance_count")
        table["*instances"] = _column(table, counts, lambda value: value)
        table["instance_count"] = _column(table, counts, _most)
        table["cores"], table["gpus"] = self.hardware.cores, len(self.hardware.gpus)
        preferred = self.parameter("preferred_batch_sizes").values
        table["sizes"] = [
            preferred_sizes(preferred[at], largest)
            for at, largest in zip(
                table["#preferred_batch_sizes"], table.max_batch_size, strict=True
            )
        ]
        return self._with_effective_columns(table)

    def _with_effective_columns(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add a column per parameter that is constant where the parameter has no effect."""
        request_size = self.limits.request_size
        batches = table.batching.astype(bool) & (table.max_batch_size > request_size)
        idle = {"batching": False, "max_batch_size": request_size, "max_queue_delay_us": 0}
        for each in PARAMETER_NAMES:
            table[f"={each}"] = table[each]
        for name, value in idle.items():
            table[f"={name}"] = table[name].where(batches, value)
        table["=preferred_batch_sizes"] = table.sizes.where(batches, "")
        table["=instance_count"] = table["*instances"].map(self._counts)
        if self.kind == "KIND_GPU":
            table["=intra_op_threads"] = 1
        for name in _OF_ENGINES:
            table[f"={name}"] = table[name].where(table.runtime == "tensorrt", UNSEARCHED[name])
        if self.alone:
            limits = pd.to_numeric(table.rate_limit, errors="coerce")
            table["=rate_limit"] = table.rate_limit.where(limits < table.instance_count, "off")
        return table

    def _rules(self) -> Iterator[tuple[str, Rule]]:
        """(what the rule says, mask of the rows it keeps), in the order of application."""
        size = self.limits.request_size
        yield "the runtime has a way to serve the precision", self._runtime_has_precision
        yield f"max_batch_size is at least traffic.batch_size ({size})", self._takes
        yield "preferred_batch_sizes are from 1 to max_batch_size", _preferred_fit
        yield from self._hardware_rules()
        for condition in self.limits.conditions:
            yield condition, partial(evaluate, condition)
        for spec in sorted(self.limits.excluded, key=lambda spec: spec.label):
            yield f"{spec.label} is excluded", partial(self._needs_another, spec)
        for spec, size in self.limits.failing_batches:
            rule = f"max_batch_size of {spec.label} is below {size}"
            yield rule, partial(self._stays_below, spec, size)

    def _hardware_rules(self) -> Iterator[tuple[str, Rule]]:
        devices = len(self.hardware.gpus)
        yield f"instance_count lists one number for each of {devices} GPUs", self._counts_fit
        if self.kind == "KIND_CPU":
            yield CORES_CONDITION, partial(evaluate, CORES_CONDITION)
        if self.limits.memory_mib is not None:
            rule = f"the instances fit in {self.limits.memory_mib:.0f} MiB of memory"
            yield rule, self._fits_in_memory

    def _runtime_has_precision(self, rows: pd.DataFrame) -> pd.Series[bool]:
        able = PRECISIONS_OF[self.kind]
        pairs = zip(rows.runtime, rows.precision, strict=True)
        return _mask(rows, [p in able.get(r, ()) for r, p in pairs])

    def _takes(self, rows: pd.DataFrame) -> pd.Series[bool]:
        return ~rows.batching.astype(bool) | (rows.max_batch_size >= self.limits.request_size)

    def _counts_fit(self, rows: pd.DataFrame) -> pd.Series[bool]:
        devices = len(self.hardware.gpus)
        values = rows["*instances"]
        return _mask(
            rows, [not isinstance(v, tuple) or (len(v) == devices and any(v)) for v in values]
        )

    def _fits_in_memory(self, rows: pd.DataFrame) -> pd.Series[bool]:
        known, limit = dict(self.limits.instance_mib), self.limits.memory_mib
        assert limit is not None, "the rule is there only where it is known"
        pairs = zip(self._artifacts(rows), rows.instance_count, strict=True)
        return _mask(rows, [count * known.get(spec, 0.0) <= limit for spec, count in pairs])

    def _needs_another(self, spec: ArtifactSpec, rows: pd.DataFrame) -> pd.Series[bool]:
        return _mask(rows, [own != spec for own in self._artifacts(rows)])

    def _stays_below(self, spec: ArtifactSpec, size: int, rows: pd.DataFrame) -> pd.Series[bool]:
        pairs = zip(self._artifacts(rows), rows["=max_batch_size"], strict=True)
        return _mask(rows, [own != spec or largest < size for own, largest in pairs])

    def _artifacts(self, rows: pd.DataFrame) -> list[ArtifactSpec]:
        columns = ("runtime", "precision", "=engine_profile", "=max_batch_size")
        found = zip(*(rows[column] for column in columns), strict=True)
        return [self._artifact(*own) for own in found]

    def _artifact(
        self, runtime: Runtime, precision: Precision, profile: str, largest: int
    ) -> ArtifactSpec:
        """The model file that settings need; `largest` is the batch that the server may run."""
        engine = self._engine_profile(profile, largest) if runtime == "tensorrt" else None
        backend = runtime if self.kind in RUNTIMES[runtime].native_on else "python"
        return ArtifactSpec(self.model, runtime, backend, precision, engine)

    def _engine_profile(self, profile: str, largest: int) -> EngineProfile:
        """One for every batch size, or one for all: tuned for the middle one that is listed."""
        if profile == "per_batch_size":
            return EngineProfile(largest, largest)
        sizes = cast(tuple[int, ...], self.parameter("max_batch_size").values)
        if not any(self.parameter("batching").values):
            sizes = (self.limits.request_size,)
        return EngineProfile(sizes[len(sizes) // 2], sizes[-1])

    def _counts(self, value: Value) -> tuple[int, ...]:
        """Instances on each device; a number counts for every one of them."""
        if isinstance(value, tuple):
            return value
        return (cast(int, value),) * max(1, len(self.hardware.gpus))


def _column(
    table: pd.DataFrame, parameter: Parameter, shown: Callable[[Value], object]
) -> pd.Series[Any]:
    values = np.empty(len(parameter.values), dtype=object)
    values[:] = [shown(v) for v in parameter.values]
    return pd.Series(values[table[f"#{parameter.name}"]], dtype=object).infer_objects()


def _mask(rows: pd.DataFrame, kept: Sequence[bool]) -> pd.Series[bool]:
    return pd.Series(kept, index=rows.index, dtype=bool)


def _use(found: Collection[tuple[int, Value]]) -> ArtifactUse:
    paddings = {padding if isinstance(padding, tuple) else () for _, padding in found}
    return ArtifactUse(tuple(sorted({size for size, _ in found})), tuple(sorted(paddings)))


def _most(value: Value) -> int:
    """Instances on the device that has the most; what conditions compare."""
    return max(value) if isinstance(value, tuple) else cast(int, value)


def _preferred_fit(rows: pd.DataFrame) -> pd.Series[bool]:
    found = zip(rows["=batching"], rows.sizes, rows.max_batch_size, strict=True)
    return _mask(
        rows,
        [not on or all(0 < size <= largest for size in sizes) for on, sizes, largest in found],
    )


def _executions(chosen: Mapping[str, Value]) -> int | None:
    limit = chosen["rate_limit"]
    return limit if isinstance(limit, int) else None
