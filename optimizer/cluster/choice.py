"""Which Ray cluster a study runs on, and which of its nodes. It is read without Ray."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.errors import RequirementError, UsageError


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


def cluster_choice(
    address: str | None, worker_resources: Iterable[tuple[str, float]]
) -> ClusterChoice | None:
    """Return the choice of `run`'s options; None for a run on this machine.

    Raises:
        UsageError: for resources without a cluster.
    """
    resources = tuple(worker_resources)
    if address is None:
        if resources:
            names = ", ".join(name for name, _ in resources)
            raise UsageError(f"--worker-resources: needs --cluster; got {names}")
        return None
    return ClusterChoice(address, resources)


def require_ray() -> None:
    """Raise RequirementError unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise RequirementError(
            "--cluster needs Ray", "pip install 'triton-cost-optimizer[cluster]'"
        )
