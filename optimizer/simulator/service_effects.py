"""Prior distribution of service times, before any is measured.

An execution of a batch of b takes fixed + item x b, but for a smooth rest:

    log time(b) = log(exp(fixed) + b exp(item)) + rest(log b)

Both logarithms are sums of effects: of the runtime, the precision, the instances, and so on, each
normally distributed about zero, interactions narrower than their main effects. So a few
measurements tell of execution layouts that were never run: a runtime has the fixed part whatever
the precision, which is why precision gains less on small batches. A polynomial in the logarithm of
the batch size would have to learn that for every artefact anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.execution_layout import ExecutionLayout

Floats = NDArray[np.float64]
_Key = Callable[[ExecutionLayout], Hashable]

LOG_FIXED_OVER_ITEM = math.log(0.7)
"""Expected value: the fixed time is a little less than that of one inference."""


@dataclass(frozen=True)
class ServiceEffect:
    """A normal effect on the logarithms of the fixed time and of the time for each inference.

    Attributes:
        key: layouts of equal key share the effect.
        common: standard deviation of the addition to both logarithms.
        fixed, item: standard deviation of the addition to one of them alone.
        covariate: factor of the effect; 1 where None.
        mean: expected addition to both.
    """

    key: _Key
    common: float
    fixed: float = 0.0
    item: float = 0.0
    covariate: Callable[[ExecutionLayout], float] | None = None
    mean: Callable[[ExecutionLayout], float] | None = None


def _doublings_of_instances(layout: ExecutionLayout) -> float:
    return math.log2(layout.executing / layout.devices)


def _doublings_of_threads(layout: ExecutionLayout) -> float:
    return math.log2(layout.groups[0].threads)


def _elsewhere(layout: ExecutionLayout) -> float:
    return float(layout.elsewhere)


def _instances_elsewhere(layout: ExecutionLayout) -> float:
    return _elsewhere(layout) * _doublings_of_instances(layout)


def _threads_elsewhere(layout: ExecutionLayout) -> float:
    return _elsewhere(layout) * _doublings_of_threads(layout)


def _all(layout: ExecutionLayout) -> Hashable:
    return None


def _arithmetic(layout: ExecutionLayout) -> Hashable:
    return (layout.artifact.runtime, layout.artifact.backend, layout.artifact.precision)


EFFECTS = (
    ServiceEffect(_all, common=2.0, fixed=0.8),
    ServiceEffect(lambda x: x.artifact.runtime, common=0.4, fixed=0.5, item=0.3),
    ServiceEffect(lambda x: x.artifact.precision, common=0.1, fixed=0.1, item=0.5),
    ServiceEffect(_arithmetic, common=0.1, fixed=0.2, item=0.3),
    ServiceEffect(lambda x: x.artifact, common=0.05, fixed=0.1, item=0.1),
    ServiceEffect(lambda x: x.variant, common=0.2, fixed=0.3, item=0.2),
    ServiceEffect(lambda x: (x.artifact, x.variant), common=0.05, fixed=0.1, item=0.05),
    ServiceEffect(
        lambda x: x.groups[0].kind,
        common=0.2,
        fixed=0.1,
        item=0.1,
        covariate=_doublings_of_instances,
        # Instances slow each other down: a little on cores of their own, much on one GPU.
        mean=lambda x: 0.5 if x.groups[0].kind == "KIND_GPU" else 0.15,
    ),
    ServiceEffect(
        _all,
        common=0.2,
        fixed=0.15,
        item=0.1,
        covariate=_doublings_of_threads,
        mean=lambda _: -0.45,
    ),
    ServiceEffect(_all, common=0.1, covariate=lambda x: math.log2(x.devices)),
    ServiceEffect(
        _arithmetic, common=0.08, fixed=0.05, item=0.05, covariate=_doublings_of_instances
    ),
    ServiceEffect(_arithmetic, common=0.08, fixed=0.1, item=0.05, covariate=_doublings_of_threads),
    ServiceEffect(
        lambda x: (x.groups, x.executions_per_device), common=0.05, fixed=0.05, item=0.03
    ),
    ServiceEffect(
        lambda x: (x.artifact, x.variant, x.groups, x.executions_per_device),
        common=0.05,
        fixed=0.05,
        item=0.03,
    ),
)
"""Effects from coarse to fine. Slopes are for each doubling."""

DISCREPANCIES = (
    ServiceEffect(_all, common=2.0, fixed=0.3, covariate=_elsewhere),
    ServiceEffect(
        lambda x: x.artifact.precision, common=0.5, fixed=0.1, item=0.3, covariate=_elsewhere
    ),
    ServiceEffect(lambda x: x.artifact.runtime, common=0.1, fixed=0.1, covariate=_elsewhere),
    ServiceEffect(_arithmetic, common=0.4, fixed=0.05, item=0.05, covariate=_elsewhere),
    ServiceEffect(lambda x: x.groups[0].kind, common=0.08, covariate=_instances_elsewhere),
    ServiceEffect(_all, common=0.1, covariate=_threads_elsewhere),
    ServiceEffect(lambda x: (x.artifact, x.variant, x.groups), common=0.05, covariate=_elsewhere),
)
"""Effects by which times on other hardware differ from those here: a scale of everything, one of
each precision and of each runtime's use of it, as processors differ in their instructions, and
little else. They are 0 here, so that other hardware tells the shape of the times, and a few
measurements here their scale."""

_ALL_EFFECTS = (*EFFECTS, *DISCREPANCIES)

_RESTS: tuple[tuple[_Key, float], ...] = (
    (_all, 0.05),
    (_arithmetic, 0.05),
    (lambda x: (x.artifact, x.variant, x.groups), 0.03),
)
"""Keys and standard deviations of the smooth rest by batch size; equal keys share it."""

_REST_DOUBLINGS = 1.5
"""Doublings of the batch size over which the rest changes."""


PAIR_SD = 0.2
"""Standard deviation of the logarithm by which an execution of another model slows one down."""


def pair_mean(layout: ExecutionLayout) -> float:
    """Return the expected value of that logarithm: a little on cores of its own, much on a GPU."""
    return 0.4 if layout.groups[0].kind == "KIND_GPU" else 0.05


@dataclass(frozen=True)
class DesignRows:
    """Execution layouts with a batch size each, as numbers.

    Attributes:
        codes: for each effect, equal numbers where its key is equal, shape [effects, rows]; the
            discrepancies are among the effects where a row is of other hardware.
        covariates: shape [effects, rows].
        rest_codes: the same for the smooth rest, shape [rests, rows].
        others: mean number of instances of other models that execute meanwhile, shape [models,
            rows]; no models where all rows are of a model alone.
        mean: expected addition to both logarithms, shape [rows].
        log_batch: logarithm of the batch size, shape [rows].
    """

    codes: NDArray[np.int64]
    covariates: Floats
    rest_codes: NDArray[np.int64]
    others: Floats
    mean: Floats
    log_batch: Floats


@dataclass(frozen=True)
class Covariance:
    """Covariance of two sets of rows by its sources; shape [left, right] each."""

    common: Floats
    fixed: Floats
    item: Floats
    rest: Floats

    def of_times(self, left: Floats, right: Floats) -> Floats:
        """Return that of the log times, where items take the shares `left` and `right` of them."""
        fixed = np.outer(1 - left, 1 - right) * self.fixed
        total: Floats = self.common + fixed + np.outer(left, right) * self.item + self.rest
        return total


class Coder:
    """Gives equal keys equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, Hashable], int] = {}

    def rows(
        self,
        layouts: Sequence[ExecutionLayout],
        batch_sizes: Sequence[int],
        others: Floats | None = None,
    ) -> DesignRows:
        """Return one row for each layout with its batch size, and the other models meanwhile."""
        if others is None:
            others = np.zeros((0, len(layouts)))
        distinct = list(dict.fromkeys(layouts))
        index_of = {layout: index for index, layout in enumerate(distinct)}
        index = np.array([index_of[layout] for layout in layouts], dtype=np.int64)
        rests = [key for key, _ in _RESTS]
        effects = _ALL_EFFECTS if any(layout.elsewhere for layout in distinct) else EFFECTS
        codes = self._codes([effect.key for effect in effects], distinct)
        values = np.array([[_covariate(e, layout) for layout in distinct] for e in effects])
        means = np.array([sum(_mean(e, layout) for e in EFFECTS) for layout in distinct])
        return DesignRows(
            codes[:, index],
            values[:, index],
            self._codes(rests, distinct)[:, index],
            others,
            means[index] + np.array([pair_mean(x) for x in distinct])[index] * others.sum(axis=0),
            np.log(np.asarray(batch_sizes, dtype=float)),
        )

    def _codes(
        self,
        keys: Sequence[Callable[[ExecutionLayout], Hashable]],
        layouts: Sequence[ExecutionLayout],
    ) -> NDArray[np.int64]:
        numbers = self._numbers
        return np.array(
            [
                [numbers.setdefault((which, key(layout)), len(numbers)) for layout in layouts]
                for which, key in enumerate(keys)
            ],
            dtype=np.int64,
        )


def _covariate(effect: ServiceEffect, layout: ExecutionLayout) -> float:
    return 1.0 if effect.covariate is None else effect.covariate(layout)


def _mean(effect: ServiceEffect, layout: ExecutionLayout) -> float:
    return 0.0 if effect.mean is None else effect.mean(layout) * _covariate(effect, layout)


def covariance(left: DesignRows, right: DesignRows) -> Covariance:
    """Return the prior covariance of every row of `left` with every row of `right`."""
    shape = (len(left.mean), len(right.mean))
    common, fixed, item, rest = (np.zeros(shape) for _ in range(4))
    # Rows of this hardware have no discrepancy.
    for n, effect in enumerate(_ALL_EFFECTS[: min(len(left.codes), len(right.codes))]):
        shared = (left.codes[n][:, None] == right.codes[n]).astype(float)
        if effect.covariate is not None:
            shared *= np.outer(left.covariates[n], right.covariates[n])
        common += effect.common**2 * shared
        fixed += effect.fixed**2 * shared
        item += effect.item**2 * shared
    if len(left.others) == len(right.others):
        common += PAIR_SD**2 * (left.others.T @ right.others)
    doublings = (left.log_batch[:, None] - right.log_batch) / math.log(2)
    near = np.exp(-0.5 * (doublings / _REST_DOUBLINGS) ** 2)
    for n, (_, sd) in enumerate(_RESTS):
        rest += sd**2 * (left.rest_codes[n][:, None] == right.rest_codes[n])
    return Covariance(common, fixed, item, rest * near)


def variance(rows: DesignRows, item_share: Floats) -> Floats:
    """Return the prior variance of every log time here, where items take this share of the time."""
    deviations = np.array([(effect.common, effect.fixed, effect.item) for effect in EFFECTS])
    common, fixed, item = (deviations**2).T @ rows.covariates**2
    rest = sum(sd**2 for _, sd in _RESTS)
    common = common + PAIR_SD**2 * np.sum(rows.others**2, axis=0)
    return np.asarray(common + (1 - item_share) ** 2 * fixed + item_share**2 * item + rest)
