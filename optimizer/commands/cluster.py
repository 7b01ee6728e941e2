"""A study on a Ray cluster: read, prepared and measured on nodes of one kind of hardware."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optimizer.artifacts.cache import ArtifactCache, Key
from optimizer.cluster.choice import ClusterChoice
from optimizer.cluster.ray_cluster import accelerator_types, connected, offered_slots
from optimizer.cluster.ray_evaluator import RayEvaluator
from optimizer.cluster.ray_pool import RayPool
from optimizer.cluster.ray_worker import NodeContext
from optimizer.cluster.worker_folder import worker_folder, workers_root
from optimizer.cluster.worker_logs import keep_logs
from optimizer.commands.run_context import RunContext, open_space, require_machine
from optimizer.configuration.hardware import Hardware
from optimizer.configuration.hosting import ContainerHost, RemoteHost
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import RequirementError, UsageError
from optimizer.files.atomic import write_json
from optimizer.machine.docker_engine import remove_containers_of_the_dead
from optimizer.machine.fingerprint import Machine
from optimizer.machine.gpus import refuse_foreign_processes
from optimizer.machine.slots import Slot
from optimizer.search.evaluator import LiveEvaluator, PhaseEvaluator
from optimizer.search.prepared import Prepared
from optimizer.search.worker_pool import WorkerPool
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher, to_all
from optimizer.study.files import read_prepared, read_start
from optimizer.study.warm_start import unequal


@contextmanager
def open_cluster(choice: ClusterChoice, watch: Watcher) -> Iterator[ClusterNodes]:
    """Connect to a cluster and start workers on its nodes; they end with the block.

    Raises:
        UsageError: no cluster answers, it offers no slot, or has several kinds of accelerators.
    """
    resources = dict(choice.worker_resources)
    with connected(choice.address):
        kind = choice.accelerator_type or _only_type(resources)
        if not offered_slots(resources, kind):
            wanted = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
            raise UsageError(
                f"--cluster: no node at {choice.address} has room for a worker"
                + (f" with {wanted} (--worker-resources)" if wanted else "")
            )
        with RayPool(lambda: offered_slots(resources, kind), watch) as pool:
            yield ClusterNodes(pool, kind)


def _only_type(worker_resources: Mapping[str, float]) -> str | None:
    types = accelerator_types(worker_resources)
    if len(types) > 1:
        raise UsageError(
            f"--cluster: the cluster has accelerators of several types ({', '.join(types)}), and a "
            "study is of one: add --each-accelerator-type for a study of each, or choose nodes by "
            f"--worker-resources accelerator_type:{types[0]}=0.001"
        )
    return types[0] if types else None


class ClusterNodes:
    """The nodes that a study runs on, a `TrialSite`.

    Args:
        accelerator_type: of all of them; None without accelerators.
    """

    def __init__(self, pool: RayPool, accelerator_type: str | None) -> None:
        self._pool = pool
        self._accelerator_type = accelerator_type

    @property
    def slots(self) -> None:
        """None: the slots are those of the nodes."""
        return None

    def read_space(self, space: Path | Space) -> Space:
        """Read a space file for the hardware of a node. Raises as `open_space` does."""
        if isinstance(space, Space):
            raise UsageError("--cluster: needs the path of a space file, which is read for a node")
        hardware: Hardware = self._pool.on_a_node(_hardware)
        read = open_space(space, hardware=hardware, accelerator_type=self._accelerator_type)
        if isinstance(read.host, RemoteHost):
            raise UsageError(
                "--cluster: must be left out with server.launcher remote, as each worker has a "
                f"server of its own; got the server at {read.host.grpc}"
            )
        return read

    def note(self, space: Space) -> Note | None:
        """Return nothing: the workers are told when they have started."""
        del space
        return None

    def require_machine(self, space: Space, directory: StudyDirectory) -> tuple[Slot, Machine]:
        """Return slot and fingerprint of a node that can serve the space, checked there.

        Nodes of another kind than those of a study that is resumed take no part.

        Raises:
            RequirementError: no node can serve it, or all are of another kind.
        """
        earlier = read_start(directory).machine if directory.space.exists() else None

        def refuse(own: tuple[Slot, Machine]) -> str:
            return difference(earlier, own[1]) if earlier is not None else ""

        answer: tuple[Slot, Machine] = self._pool.on_a_node(_machine, space, refuse=refuse)
        return answer

    @contextmanager
    def evaluator(
        self, run: RunContext, watch: Watcher
    ) -> Iterator[tuple[PhaseEvaluator, Prepared]]:
        """Build and gate the artefacts on one node, and open the workers of all.

        Yields:
            What measures on one worker alone, and what was prepared.

        Raises:
            RequirementError: this process, which writes the study's files, cannot read an artefact.
        """
        directory = run.directory
        self._pool.watch = to_all(partial(keep_logs, directory), watch)
        earlier = read_prepared(directory) if directory.prepared.exists() else None
        there: PreparedElsewhere = self._pool.open_one(PrepareOnNode(run, earlier))
        write_json(directory.prepared, there.content)
        there.obtain_artifacts(run.cache)
        self._pool.open_others(MeasureOnNode(run, there))
        yield RayEvaluator(self._pool), there.prepared

    @contextmanager
    def pool(self, run: RunContext, prepared: Prepared, watch: Watcher) -> Iterator[WorkerPool]:
        """Yield the pool of all workers, which have been opened."""
        del run, prepared, watch
        with self._pool.searching() as pool:
            yield pool


def _hardware(node: NodeContext) -> Hardware:
    return node.hardware


def _machine(node: NodeContext, space: Space) -> tuple[Slot, Machine]:
    _, machine = require_machine(space, node.slots)
    return node.slot, machine


def difference(study: Machine, node: Machine) -> str:
    """Return in what a node's machine differs from that of a study; "" where it does not."""
    pairs = unequal(study.to_json(), node.to_json())
    texts = [f"{'.'.join(at)} is {other}, the study's is {own}" for at, own, other in pairs]
    return f"it is of another kind: {'; '.join(texts)}" if texts else ""


@dataclass(frozen=True)
class PreparedElsewhere:
    """What one node prepared, for the others.

    Attributes:
        keys: of the artefacts that are entries of the cache.
        content: of prepared.json.
    """

    prepared: Prepared
    keys: Mapping[ArtifactSpec, Key]
    content: Mapping[str, Any]

    def obtain_artifacts(self, cache: ArtifactCache) -> None:
        """See to it that the artefacts are on this host, from a shared cache where there is one.

        Raises:
            RequirementError: one of them is not.
            StorageError: the shared cache cannot be used.
        """
        for spec, own in self.prepared.files.items():
            if own.artifact.exists():
                continue
            missing = RequirementError(
                f"{socket.gethostname()} cannot read the artefact {spec.label} at {own.artifact}",
                "give --cache a folder that all nodes share, or the URL of a shared cache",
            )
            if spec not in self.keys or cache.shared is None:
                raise missing
            cache.get_or_build(self.keys[spec], partial(_raise, missing))


def _raise(error: RequirementError, _: Path) -> None:
    raise error


@dataclass(frozen=True)
class PrepareOnNode:
    """Opens the worker that builds and gates the artefacts; a study has one at a time.

    Attributes:
        earlier: content of prepared.json by earlier runs; None in the first.
    """

    run: RunContext
    earlier: Mapping[str, Any] | None

    @contextmanager
    def __call__(self, node: NodeContext) -> Iterator[tuple[LiveEvaluator, PreparedElsewhere]]:
        """Yield the evaluator, and what was prepared."""
        with _on_node(self.run, node) as run:
            if self.earlier is not None:
                write_json(run.directory.prepared, self.earlier)
            with run.evaluator(node.watch) as (evaluator, prepared):
                keys = {
                    spec: key
                    for spec, own in prepared.files.items()
                    if (key := run.cache.key_of(own.artifact)) is not None
                }
                content = read_prepared(run.directory)
                yield evaluator, PreparedElsewhere(prepared, keys, content)


@dataclass(frozen=True)
class MeasureOnNode:
    """Opens a worker that measures what another one has prepared."""

    run: RunContext
    there: PreparedElsewhere

    @contextmanager
    def __call__(self, node: NodeContext) -> Iterator[tuple[LiveEvaluator, None]]:
        """Yield the evaluator.

        Raises:
            RequirementError: the node is of another kind, or cannot read the artefacts.
        """
        with _on_node(self.run, node) as run:
            self.there.obtain_artifacts(run.cache)
            with run.evaluator_of(self.there.prepared.files, node.watch) as evaluator:
                yield evaluator, None


@contextmanager
def _on_node(run: RunContext, node: NodeContext) -> Iterator[RunContext]:
    """Yield the context of a run on a node that is of its kind and free.

    Raises:
        RequirementError: it is of another kind, or other processes use its GPU.
    """
    if differs := difference(run.machine, _machine(node, run.space)[1]):
        raise RequirementError(differs)
    name, worker = run.directory.name, node.slot.name
    with worker_folder(workers_root(), name, worker, node.watch) as directory:
        if isinstance(run.space.host, ContainerHost):
            remove_containers_of_the_dead()
        refuse_foreign_processes(node.slot.gpu_uuids)
        yield replace(run, slot=node.slot, directory=directory)
