"""Combinations of points of several models that are served together. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.columns import Columns, length, selected
from optimizer.configuration.conditions import ConditionError, evaluate
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import (
    CORES_CONDITION,
    MAX_POINTS,
    EmptySpaceError,
    Limits,
    MemoryLimit,
    ModelSpace,
    hardware_columns,
)
from optimizer.configuration.serving_config import ServerOptions

Rows = list[NDArray[np.int64]]
"""For each model, the rows of its own points; of equal length."""

_JointRule = Callable[[Rows], NDArray[np.bool_]]


@dataclass(frozen=True)
class JointPoints:
    """The combinations of the points of several models on given hardware.

    Attributes:
        conditions: on several models, and the models that each names.
    """

    models: tuple[ModelSpace, ...]
    hardware: Hardware
    limits: Limits
    conditions: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def errors(self) -> list[ConditionError]:
        """What is wrong with the conditions."""
        found = (self._error(condition, named) for condition, named in self.conditions)
        return [error for error in found if error is not None]

    @property
    def rows(self) -> Rows:
        """Every combination of the models' points that can be served together.

        Raises:
            EmptySpaceError: when there is none, or there are too many.
            ConditionError: when a condition names something unknown or is no comparison.
        """
        size = math.prod(len(model.points) for model in self.models)
        if size > MAX_POINTS:
            raise EmptySpaceError(
                f"must have at most {MAX_POINTS:,} combinations of the models' own, got {size:,}"
            )
        grid = np.indices([len(model.points) for model in self.models], dtype=np.int64)
        rows = [axis.ravel() for axis in grid]
        for rule, allowed in self._joint_rules():
            mask = allowed(rows)
            rows = [own[mask] for own in rows]
            if not len(rows[0]):
                raise EmptySpaceError(f"no combination of the models is left by the rule: {rule}")
        return rows

    def _joint_rules(self) -> Iterator[tuple[str, _JointRule]]:
        yield f"{CORES_CONDITION}, summed over the models", self._cores_suffice
        for limit in self.limits.memory:
            yield f"the models fit in {limit.text} together", partial(self._memory_suffices, limit)
        yield "rate_limit is the same for every model", self._rate_limits_agree
        rule = "response_cache_mib is the same for every model with response_cache"
        yield rule, self._cache_sizes_agree
        for condition, named in self.conditions:
            yield condition, partial(self._meets, condition, named)

    def _meets(self, condition: str, named: Sequence[str], rows: Rows) -> NDArray[np.bool_]:
        own = [
            (model, selected(model.rows, at))
            for model, at in zip(self.models, rows, strict=True)
            if model.model in named
        ]
        return evaluate(condition, self._joint_table(own), named)

    def _joint_table(self, tables: Sequence[tuple[ModelSpace, Columns]]) -> Columns:
        """Return tables of models with equally many rows as one, with columns "MODEL.NAME"."""
        columns = {
            f"{model.model}.{parameter.name}": table[parameter.name]
            for model, table in tables
            for parameter in model.parameters
        }
        return {**columns, **hardware_columns(self.hardware, length(columns))}

    def _cores_suffice(self, rows: Rows) -> NDArray[np.bool_]:
        threads = sum(m.threads[own] for m, own in zip(self.models, rows, strict=True))
        return np.asarray(threads <= self.hardware.cores)

    def _memory_suffices(self, limit: MemoryLimit, rows: Rows) -> NDArray[np.bool_]:
        needed = sum(m.needed_mib(limit)[own] for m, own in zip(self.models, rows, strict=True))
        return np.asarray(np.asarray(needed).max(axis=1) <= limit.mib)

    def _rate_limits_agree(self, rows: Rows) -> NDArray[np.bool_]:
        chosen = self._chosen(rows, lambda options: options.executions_per_device)
        return np.asarray((chosen == chosen[0]).all(axis=0))

    def _cache_sizes_agree(self, rows: Rows) -> NDArray[np.bool_]:
        chosen = self._chosen(rows, lambda options: options.cache_bytes)
        return np.asarray(((chosen == 0) | (chosen == chosen.max(axis=0))).all(axis=0))

    def _chosen(
        self, rows: Rows, option: Callable[[ServerOptions], int | None]
    ) -> NDArray[np.int64]:
        """Return what the points of each model ask of the server, 0 for None; [models, points]."""
        values = [
            np.array([option(model.draft(p).server()) or 0 for p in model.points])
            for model in self.models
        ]
        return np.stack([own[at] for own, at in zip(values, rows, strict=True)])

    def _error(self, condition: str, named: Sequence[str]) -> ConditionError | None:
        """Return what is wrong with a condition on several models."""
        tables = [(model, model.table()) for model in self.models if model.model in named]
        rows = np.arange(max(length(table) for _, table in tables))
        own = [(model, selected(table, rows % length(table))) for model, table in tables]
        try:
            evaluate(condition, self._joint_table(own), named)
        except ConditionError as error:
            return error
        return None
