"""Which Ray cluster a study runs on, and which of its nodes. It is read without Ray."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from optimizer.errors import RequirementError


@dataclass(frozen=True)
class ClusterChoice:
    """The workers of a study on a Ray cluster.

    Attributes:
        address: HOST:PORT of the cluster's head, or "auto" for the cluster of this machine.
        worker_resources: Ray resources that a worker requires besides CPUs and a GPU, with amounts.
        accelerator_type: of the study's nodes, as Ray names it; None for the only one there is.
    """

    address: str
    worker_resources: tuple[tuple[str, float], ...] = ()
    accelerator_type: str | None = None


def require_ray() -> None:
    """Raise RequirementError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise RequirementError("--cluster needs Ray", "pip install 'triton-cost-optimizer[cluster]'")
