"""The finite set of serving configurations that a study may propose. Pure.

A space is a list of parameters, each with its listed values, and conditions that a point must
meet. Every valid point is one row of `SearchSpace.points` (positions into the value lists), and no
two rows stand for the same `ServingConfig`: settings without effect (a queue delay where batching
is off) are fixed at one value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optimizer.serving_config import (
    PRECISION_RANK,
    PRECISIONS_OF,
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    Precision,
    Runtime,
    ServingConfig,
)

Value = int | bool | str | tuple[int, ...]
ParameterName = Literal[
    "runtime",
    "precision",
    "batching",
    "max_batch_size",
    "preferred_batch_sizes",
    "max_queue_delay_us",
    "instance_count",
    "intra_op_threads",
    "padding",
]
Position = tuple[int, ...]
"""One point: for each parameter, the position of its value in the parameter's list."""

Rule = Callable[[pd.DataFrame], "pd.Series[bool]"]

MAX_POINTS = 1_000_000
"""Largest product of the value lists; a larger space is refused, with its size."""

CORES_CONDITION = "instance_count * intra_op_threads <= cores"
"""Holds in every space: more threads than cores lose to their own contention."""


class EmptySpaceError(ValueError):
    """No point meets the conditions; the message says which one leaves none."""


class ConditionError(ValueError):
    """A condition cannot be evaluated; args are the rule that it breaks and its text."""


@dataclass(frozen=True)
class Parameter:
    """One searched setting of one model and the values it may take, in listed order."""

    model: str
    name: ParameterName
    values: tuple[Value, ...]

    @property
    def key(self) -> str:
        """Name in studies and on the command line: "model.parameter"."""
        return f"{self.model}.{self.name}"

    @property
    def ordinal(self) -> bool:
        """Whether the values are numbers, so that neighbours in the list behave alike."""
        return all(isinstance(v, int) and not isinstance(v, bool) for v in self.values)


def label(value: Value) -> str | int | bool:
    """A value as people and Optuna see it: lists become "4/8"."""
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return value


@dataclass(frozen=True)
class SearchSpace:
    """The valid points of one model's parameters on a slot of `cores` cores.

    Attributes:
        parameters: fixed order; ordinal values ascend.
        conditions: expressions over parameter names and `cores`; all must hold.
        request_size: inferences that one request asks for; the server must take them together.
        excluded: artefacts that left the space because they failed to build or missed accuracy.
    """

    parameters: tuple[Parameter, ...]
    conditions: tuple[str, ...]
    cores: int
    request_size: int = 1
    excluded: frozenset[ArtifactSpec] = field(default_factory=frozenset)

    @cached_property
    def points(self) -> NDArray[np.int64]:
        """All valid points, shape [points, parameters].

        Raises:
            EmptySpaceError: when no point is valid.
            ConditionError: when a condition names something unknown or is no comparison.
        """
        table = self._table()
        for rule, kept in self._rules():
            table = table[kept(table)]
            if table.empty:
                raise EmptySpaceError(f"no combination of values is left by the rule: {rule}")
        return table.drop_duplicates(_EFFECTIVE)[_POSITIONS].to_numpy(dtype=np.int64)

    def check_conditions(self) -> Iterator[ConditionError]:
        """What is wrong with the conditions themselves, each on its own."""
        table = self._table()
        for condition in self.conditions:
            try:
                evaluate(condition, table)
            except ConditionError as error:
                yield error

    def _table(self) -> pd.DataFrame:
        size = math.prod(len(p.values) for p in self.parameters)
        if size > MAX_POINTS:
            raise EmptySpaceError(f"must have at most {MAX_POINTS:,} combinations, got {size:,}")
        grid = itertools.product(*(range(len(p.values)) for p in self.parameters))
        table = pd.DataFrame(list(grid), columns=_POSITIONS)
        for parameter in self.parameters:
            values = np.empty(len(parameter.values), dtype=object)
            values[:] = [label(v) for v in parameter.values]
            column = pd.Series(values[table[f"#{parameter.name}"]], dtype=object)
            table[parameter.name] = column.infer_objects()
        table["cores"] = self.cores
        preferred = self._parameter("preferred_batch_sizes").values
        table["sizes"] = [
            preferred_sizes(preferred[at], largest)
            for at, largest in zip(
                table["#preferred_batch_sizes"], table.max_batch_size, strict=True
            )
        ]
        return _with_effective_columns(table, self.request_size)

    def _rules(self) -> Iterator[tuple[str, Rule]]:
        """(what the rule says, mask of the rows it keeps), in the order of application."""
        yield "the runtime has a way to serve the precision", _runtime_has_precision
        yield f"max_batch_size is at least traffic.batch_size ({self.request_size})", self._takes
        yield "preferred_batch_sizes are from 1 to max_batch_size", _preferred_fit
        for condition in (CORES_CONDITION, *self.conditions):
            yield condition, partial(evaluate, condition)
        for spec in sorted(self.excluded, key=lambda spec: spec.label):
            yield f"{spec.label} is excluded", partial(_needs_another, spec)

    def _takes(self, rows: pd.DataFrame) -> pd.Series[bool]:
        return ~rows.batching.astype(bool) | (rows.max_batch_size >= self.request_size)

    def _parameter(self, name: ParameterName) -> Parameter:
        return next(p for p in self.parameters if p.name == name)

    @cached_property
    def _configs(self) -> dict[Position, ServingConfig]:
        return {}

    def config(self, position: Position) -> ServingConfig:
        """The configuration that a valid point stands for."""
        if position not in self._configs:
            pairs = zip(self.parameters, position, strict=True)
            chosen: dict[str, Value] = {p.name: p.values[at] for p, at in pairs}
            self._configs[position] = to_config(self.parameters[0].model, chosen, self.request_size)
        return self._configs[position]

    def nearest(
        self, position: Sequence[int], excluding: Collection[Position] = ()
    ) -> Position | None:
        """The valid point closest to any combination of positions; itself where it is valid.

        Ordinal parameters count by steps along their list, others by difference.

        Args:
            excluding: valid points that are out of the question.

        Returns:
            None when every valid point is excluded.
        """
        distances = np.zeros(len(self.points))
        for column, (parameter, at) in enumerate(zip(self.parameters, position, strict=True)):
            steps = np.abs(self.points[:, column] - at)
            span = max(1, len(parameter.values) - 1)
            distances += steps / span if parameter.ordinal else steps > 0
        # A stable sort, so that the first of equally near points is taken every time.
        by_distance = (self.at(int(row)) for row in np.argsort(distances, kind="stable"))
        return next((point for point in by_distance if point not in excluding), None)

    def at(self, row: int) -> Position:
        """The valid point in row `row` of `points`."""
        return tuple(int(i) for i in self.points[row])

    @cached_property
    def baseline(self) -> Position:
        """What someone serves who changes nothing: Triton's defaults, the runtime's own threads.

        FP32 (or the highest precision listed), the unoptimised runtime where listed, one
        instance with all cores, no batching.
        """
        wanted: dict[str, Value] = {
            "precision": max(
                cast(tuple[Precision, ...], self._parameter("precision").values),
                key=lambda p: PRECISION_RANK[p],
            ),
            "batching": False,
            "max_batch_size": 1,
            "max_queue_delay_us": 0,
            "preferred_batch_sizes": (),
            "instance_count": 1,
            "intra_op_threads": self.cores,
            "padding": (),
        }
        if "pytorch" in self._parameter("runtime").values:
            wanted["runtime"] = "pytorch"
        nearest = self.nearest([_closest(p, wanted.get(p.name)) for p in self.parameters])
        assert nearest is not None, "nothing was excluded and a space is never empty"
        return nearest

    @cached_property
    def artifacts(self) -> tuple[ArtifactSpec, ...]:
        """Every artefact that some valid point needs, the baseline's first, then by label."""
        specs = {m.artifact for row in self.points for m in self.config(tuple(row)).models}
        first = self.config(self.baseline).models[0].artifact
        return tuple(sorted(specs, key=lambda spec: (spec != first, spec.label)))

    def without(self, artifacts: Collection[ArtifactSpec]) -> SearchSpace:
        """This space less the points that need one of `artifacts`."""
        return replace(self, excluded=self.excluded | frozenset(artifacts))

    @cached_property
    def _rows_by_config(self) -> dict[ServingConfig, int]:
        return {self.config(self.at(row)): row for row in range(len(self.points))}

    def position_of(self, config: ServingConfig) -> Position | None:
        """The point that stands for `config`, None where it is not in the space."""
        row = self._rows_by_config.get(config)
        return self.at(row) if row is not None else None

    def __len__(self) -> int:
        return len(self.points)


_NAMES: tuple[ParameterName, ...] = get_args(ParameterName)
_POSITIONS = [f"#{name}" for name in _NAMES]
_EFFECTIVE = [f"={name}" for name in _NAMES]


def parameters_in_order(model: str, values: Mapping[str, Sequence[Value]]) -> tuple[Parameter, ...]:
    """The parameters of a model in the fixed order, numbers ascending."""
    made = (Parameter(model, name, tuple(values[name])) for name in _NAMES)
    return tuple(
        replace(p, values=tuple(sorted(cast(tuple[int, ...], p.values)))) if p.ordinal else p
        for p in made
    )


def _with_effective_columns(table: pd.DataFrame, request_size: int) -> pd.DataFrame:
    """Add a column per parameter that is constant where the parameter has no effect."""
    batches = table.batching.astype(bool) & (table.max_batch_size > request_size)
    idle = {"batching": False, "max_batch_size": request_size, "max_queue_delay_us": 0}
    for each in _NAMES:
        table[f"={each}"] = table[each]
    for name, value in idle.items():
        table[f"={name}"] = table[name].where(batches, value)
    table["=preferred_batch_sizes"] = table.sizes.where(batches, "")
    return table


def _preferred_fit(rows: pd.DataFrame) -> pd.Series[bool]:
    found = zip(rows["=batching"], rows.sizes, rows.max_batch_size, strict=True)
    fits = [not on or all(0 < size <= largest for size in sizes) for on, sizes, largest in found]
    return pd.Series(fits, index=rows.index, dtype=bool)


def _needs_another(spec: ArtifactSpec, rows: pd.DataFrame) -> pd.Series[bool]:
    return (rows.runtime != spec.runtime) | (rows.precision != spec.precision)


def _runtime_has_precision(rows: pd.DataFrame) -> pd.Series[bool]:
    pairs = zip(rows.runtime, rows.precision, strict=True)
    return pd.Series(
        [p in PRECISIONS_OF["KIND_CPU"].get(r, ()) for r, p in pairs], index=rows.index, dtype=bool
    )


def evaluate(condition: str, rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows meet a condition such as "max_queue_delay_us == 0 or batching".

    Raises:
        ConditionError: when the text is no comparison of known names.
    """
    names = [*_NAMES, "cores"]
    if "@" in condition or "__" in condition:
        raise ConditionError("must compare parameters and numbers only", condition)
    try:
        result = rows[names].eval(condition, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises many types for a wrong expression
        rule = f"must be a comparison of {', '.join(names)} ({error})"
        raise ConditionError(rule, condition) from error
    if not isinstance(result, pd.Series) or not all(isinstance(v, bool | np.bool_) for v in result):
        raise ConditionError("must be true or false for every point", condition)
    return result.astype(bool)


def preferred_sizes(value: Value, max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that a value of `preferred_batch_sizes` stands for.

    "none" leaves the choice to Triton, which takes [max_batch_size], so that list is none too;
    "half" prefers half of the largest batch; "powers" every power of two up to it.
    """
    sizes: tuple[int, ...] = ()
    if isinstance(value, tuple):
        sizes = value
    elif value == "half":
        sizes = (max_batch_size // 2,)
    elif value == "powers":
        sizes = tuple(2**n for n in range(1, int(math.log2(max_batch_size)) + 1))
    return () if sizes == (max_batch_size,) else sizes


def to_config(model: str, chosen: Mapping[str, Value], request_size: int = 1) -> ServingConfig:
    """The configuration for one value per parameter; settings without effect are left out."""
    largest = cast(int, chosen["max_batch_size"])
    batching = None
    if chosen["batching"] and largest > request_size:
        preferred = preferred_sizes(chosen["preferred_batch_sizes"], largest)
        batching = Batching(preferred, cast(int, chosen["max_queue_delay_us"]))
    runtime = cast(Runtime, chosen["runtime"])
    padding = chosen["padding"]
    count, threads = cast(int, chosen["instance_count"]), cast(int, chosen["intra_op_threads"])
    serving = ModelServing(
        name=model,
        artifact=ArtifactSpec(model, runtime, "python", cast(Precision, chosen["precision"])),
        max_batch_size=largest if batching is not None else request_size,
        batching=batching,
        groups=(InstanceGroup("KIND_CPU", count, (), threads),),
        padding=padding if isinstance(padding, tuple) else (),
        warmup_batch_sizes=tuple(sorted({1, largest if batching is not None else request_size})),
    )
    return ServingConfig(models=(serving,))


def _closest(parameter: Parameter, wanted: Value | None) -> int:
    """Position of the wanted value, else of the nearest number, else the first."""
    if wanted is not None and wanted in parameter.values:
        return parameter.values.index(wanted)
    if parameter.ordinal and isinstance(wanted, int):
        numbers = cast(tuple[int, ...], parameter.values)
        return min(range(len(numbers)), key=lambda i: abs(numbers[i] - wanted))
    return 0
