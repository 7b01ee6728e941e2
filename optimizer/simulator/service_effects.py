"""What is expected of service times before any is measured. Pure.

An execution of a batch of b takes fixed + item x b, but for a smooth rest:

    log time(b) = log(exp(fixed) + b exp(item)) + rest(log b)

Both logarithms are sums of effects: of the runtime, the precision, the instances, and so on, each
normally distributed about zero, interactions narrower than what they interact of. This is what
lets a few measurements tell of ways of serving that were never run: the fixed part, which a runtime
has whatever the precision, is why precision gains less on small batches, and a polynomial in the
logarithm of the batch size has to learn that for every artefact anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.service_observation import ExecutionLayout

Floats = NDArray[np.float64]

LOG_FIXED_OVER_ITEM = math.log(0.7)
"""Expected: an execution's fixed time is a little less than that of one inference."""


@dataclass(frozen=True)
class ServiceEffect:
    """A normal effect on the logarithms of the fixed time and of the time for each inference.

    Attributes:
        key: ways of equal key share the effect.
        common: standard deviation of what it adds to both.
        fixed, item: of what it adds to one of them alone.
        covariate: what it is multiplied by; 1 where None.
        mean: expected value of what it adds to both.
    """

    key: Callable[[ExecutionLayout], Hashable]
    common: float
    fixed: float = 0.0
    item: float = 0.0
    covariate: Callable[[ExecutionLayout], float] | None = None
    mean: Callable[[ExecutionLayout], float] | None = None


def _doublings_of_instances(way: ExecutionLayout) -> float:
    """Executing on each device."""
    return math.log2(way.executing / way.devices)


def _doublings_of_threads(way: ExecutionLayout) -> float:
    return math.log2(way.groups[0].threads)


def _doublings_of_devices(way: ExecutionLayout) -> float:
    return math.log2(way.devices)


def _sharing(way: ExecutionLayout) -> float:
    """Instances slow each other down: a little on cores of their own, much on one GPU."""
    return 0.5 if way.groups[0].kind == "KIND_GPU" else 0.15


def _everything(way: ExecutionLayout) -> Hashable:
    return None


def _runtime(way: ExecutionLayout) -> Hashable:
    return way.artifact.runtime


def _precision(way: ExecutionLayout) -> Hashable:
    return way.artifact.precision


def _arithmetic(way: ExecutionLayout) -> Hashable:
    return (way.artifact.runtime, way.artifact.backend, way.artifact.precision)


def _layout(way: ExecutionLayout) -> Hashable:
    return (way.groups, way.executions_per_device)


EFFECTS = (
    ServiceEffect(_everything, common=2.0, fixed=0.8),
    ServiceEffect(_runtime, common=0.4, fixed=0.5, item=0.3),
    ServiceEffect(_precision, common=0.1, fixed=0.1, item=0.5),
    ServiceEffect(_arithmetic, common=0.1, fixed=0.2, item=0.3),
    ServiceEffect(lambda way: way.artifact, common=0.05, fixed=0.1, item=0.1),
    ServiceEffect(lambda way: way.variant, common=0.2, fixed=0.3, item=0.2),
    ServiceEffect(lambda way: (way.artifact, way.variant), common=0.05, fixed=0.1, item=0.05),
    ServiceEffect(
        lambda way: way.groups[0].kind,
        common=0.2,
        fixed=0.1,
        item=0.1,
        covariate=_doublings_of_instances,
        mean=_sharing,
    ),
    ServiceEffect(
        _everything,
        common=0.2,
        fixed=0.15,
        item=0.1,
        covariate=_doublings_of_threads,
        mean=lambda way: -0.45,
    ),
    ServiceEffect(_everything, common=0.1, covariate=_doublings_of_devices),
    ServiceEffect(
        _arithmetic, common=0.08, fixed=0.05, item=0.05, covariate=_doublings_of_instances
    ),
    ServiceEffect(_arithmetic, common=0.08, fixed=0.1, item=0.05, covariate=_doublings_of_threads),
    ServiceEffect(_layout, common=0.05, fixed=0.05, item=0.03),
    ServiceEffect(
        lambda way: (way.artifact, way.variant, way.groups, way.executions_per_device),
        common=0.05,
        fixed=0.05,
        item=0.03,
    ),
)
"""From coarse to fine. Slopes are for each doubling."""

_RESTS: tuple[tuple[Callable[[ExecutionLayout], Hashable], float], ...] = (
    (_everything, 0.05),
    (_arithmetic, 0.05),
    (lambda way: (way.artifact, way.variant, way.groups), 0.03),
)
"""Standard deviations of the smooth rest by batch size, for ways of equal key."""

_REST_DOUBLINGS = 1.5
"""Over which the rest changes."""


@dataclass(frozen=True)
class DesignRows:
    """Batches executed in some way, as numbers, shape [rows] each.

    Attributes:
        codes: by effect: equal where its key is, shape [effects, rows].
        covariates: shape [effects, rows].
        rest_codes: shape [rests, rows].
        mean: what is expected to be added to both logarithms.
    """

    codes: NDArray[np.int64]
    covariates: Floats
    rest_codes: NDArray[np.int64]
    mean: Floats
    log_batch: Floats


@dataclass(frozen=True)
class Covariance:
    """Of two sets of rows, by what it is of; shape [left, right] each."""

    common: Floats
    fixed: Floats
    item: Floats
    rest: Floats

    def of_times(self, left: Floats, right: Floats) -> Floats:
        """Of log times, where items have the shares `left` and `right` of the time."""
        fixed = np.outer(1 - left, 1 - right) * self.fixed
        total: Floats = self.common + fixed + np.outer(left, right) * self.item + self.rest
        return total


class Coder:
    """Gives equal keys equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, Hashable], int] = {}

    def rows(self, ways: Sequence[ExecutionLayout], batch_sizes: Sequence[int]) -> DesignRows:
        """One row for each way with its batch size."""
        distinct = list(dict.fromkeys(ways))
        position = {way: at for at, way in enumerate(distinct)}
        at = np.array([position[way] for way in ways], dtype=np.int64)
        rests = [key for key, _ in _RESTS]
        codes = self._codes([effect.key for effect in EFFECTS], distinct)
        values = np.array([[_covariate(e, way) for way in distinct] for e in EFFECTS])
        means = np.array([sum(_mean(e, way) for e in EFFECTS) for way in distinct])
        return DesignRows(
            codes[:, at],
            values[:, at],
            self._codes(rests, distinct)[:, at],
            means[at],
            np.log(np.asarray(batch_sizes, dtype=float)),
        )

    def _codes(
        self, keys: Sequence[Callable[[ExecutionLayout], Hashable]], ways: Sequence[ExecutionLayout]
    ) -> NDArray[np.int64]:
        numbers = self._numbers
        return np.array(
            [
                [numbers.setdefault((which, key(way)), len(numbers)) for way in ways]
                for which, key in enumerate(keys)
            ],
            dtype=np.int64,
        )


def _covariate(effect: ServiceEffect, way: ExecutionLayout) -> float:
    return 1.0 if effect.covariate is None else effect.covariate(way)


def _mean(effect: ServiceEffect, way: ExecutionLayout) -> float:
    return 0.0 if effect.mean is None else effect.mean(way) * _covariate(effect, way)


def covariance(left: DesignRows, right: DesignRows) -> Covariance:
    """Prior covariance of every row of `left` with every row of `right`."""
    shape = (len(left.mean), len(right.mean))
    common, fixed, item, rest = (np.zeros(shape) for _ in range(4))
    for at, effect in enumerate(EFFECTS):
        shared = (left.codes[at][:, None] == right.codes[at]).astype(float)
        if effect.covariate is not None:
            shared *= np.outer(left.covariates[at], right.covariates[at])
        common += effect.common**2 * shared
        fixed += effect.fixed**2 * shared
        item += effect.item**2 * shared
    doublings = (left.log_batch[:, None] - right.log_batch) / math.log(2)
    near = np.exp(-0.5 * (doublings / _REST_DOUBLINGS) ** 2)
    for at, (_, sd) in enumerate(_RESTS):
        rest += sd**2 * (left.rest_codes[at][:, None] == right.rest_codes[at])
    return Covariance(common, fixed, item, rest * near)


def variance(rows: DesignRows, item_share: Floats) -> Floats:
    """Prior variance of the log time of every row, where items have this share of the time."""
    deviations = np.array([(effect.common, effect.fixed, effect.item) for effect in EFFECTS])
    common, fixed, item = (deviations**2).T @ rows.covariates**2
    rest = sum(sd**2 for _, sd in _RESTS)
    return np.asarray(common + (1 - item_share) ** 2 * fixed + item_share**2 * item + rest)
