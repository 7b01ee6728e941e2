"""A Ray cluster of several nodes on this machine, and what runs on them.

Each node is a raylet with worker processes of its own. All share the machine's cores, and custom
resources stand in for accelerators.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from optimizer.machine.leftovers import MARK
from tests.e2e.running import wait_until

_TEMPORARY = "TMPDIR"


class RayNodes:
    """A cluster whose workers keep their files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, name: str, resources: Mapping[str, float] | None = None) -> None:
        """Add a node with one CPU."""
        self._nodes[name] = self._cluster.add_node(
            num_cpus=1,
            node_name=name,
            resources=dict(resources or {}),
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            env_vars={_TEMPORARY: str(self._folder)},
        )

    def kill(self, name: str) -> None:
        """End a node as a power cut does, as far as its own processes go."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def kill_all_but(self, name: str) -> None:
        """End all nodes but one."""
        for other in set(self._nodes) - {name}:
            self.kill(other)

    def end(self) -> None:
        self._cluster.shutdown()

    def processes_of_trials(self) -> list[psutil.Process]:
        """Servers, the processes of their models, and load clients."""
        marked = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK, "").startswith(str(self._folder)):
                    marked.append(process)
            except psutil.Error:
                continue
        return marked

    def wait_for_no_trial(self) -> None:
        """Wait until nothing of a trial runs."""
        wait_until(lambda: not self.processes_of_trials(), f"ended: {self.processes_of_trials()}")


@contextmanager
def ray_nodes(folder: Path) -> Iterator[RayNodes]:
    """Yield a cluster without nodes, which ends with the block."""
    nodes = RayNodes(folder)
    try:
        yield nodes
    finally:
        nodes.end()
