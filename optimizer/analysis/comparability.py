"""What makes studies comparable: that they asked the same of their machines. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimizer.errors import UsageError
from optimizer.study.warm_start import unequal
from optimizer.workload.streams import Workload

_MODEL_MAY_DIFFER = ("parameters", "demand_per_second")
_TRAFFIC_MAY_DIFFER = ("demand_per_second", "headroom")


def workload_identity(content: Mapping[str, Any], workload: Workload) -> Mapping[str, Any]:
    """What is asked: models with their requests and accuracy, traffic and limits.

    Not how much of it: that is a demand. Several models' shares of it are part of what is asked.

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
    """Raises UsageError, with every difference, where studies did not ask the same."""
    if studies and (unlike := list(incomparable(studies))):
        lines = "\n".join(f"  {text}" for text in unlike)
        raise UsageError(f"the studies did not ask the same, they cannot be compared:\n{lines}")


def incomparable(studies: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Every difference of what the others asked from what the first did.

    Args:
        studies: names, and what each asked.
    """
    (first, own), *others = studies
    for name, other in others:
        for key, value, unlike in unequal(own, other):
            yield f"{'.'.join(key)}: {value} in {first}, {unlike} in {name}"
