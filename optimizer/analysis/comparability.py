"""Whether studies are comparable: whether they had the same workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizer.errors import UsageError
from optimizer.study.warm_start import unequal
from optimizer.workload.streams import Workload

_MODEL_MAY_DIFFER = ("parameters", "demand_per_second")
_TRAFFIC_MAY_DIFFER = ("demand_per_second", "headroom")


def workload_identity(content: Mapping[str, Any], workload: Workload) -> Mapping[str, Any]:
    """Return what must be equal: models with their requests and accuracy, traffic and limits.

    The demand may differ, but not the shares of several models in it.

    Args:
        content: of the space file, see `Space.content`.
    """
    whole = workload.demand_per_second
    shares = {s.name: round(s.demand_per_second / whole, 6) for s in workload.streams}
    models: Mapping[str, Mapping[str, Any]] = content.get("models", {})
    return {
        "models": {name: _less(model, _MODEL_MAY_DIFFER) for name, model in models.items()},
        "traffic": _less(content.get("traffic", {}), _TRAFFIC_MAY_DIFFER),
        "limit": content.get("limit"),
        "share of the demand": shares,
    }


def _less(section: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def refuse_incomparable(studies: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise UsageError with every difference where the workloads of studies differ."""
    if studies and (unlike := list(incomparable(studies))):
        lines = "\n".join(f"  {text}" for text in unlike)
        raise UsageError(f"the workloads of the studies differ, they cannot be compared:\n{lines}")


def incomparable(studies: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield every difference of the other workloads from the first.

    Args:
        studies: names, and the workload of each.
    """
    (first, own), *others = studies
    for name, other in others:
        for key, value, unlike in unequal(own, other):
            yield f"{'.'.join(key)}: {value} in {first}, {unlike} in {name}"
