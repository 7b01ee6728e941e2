"""The actors of workers on a Ray cluster: started on every slot, called, lost and started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from optimizer.cluster.ray_cluster import NodeSlot
from optimizer.cluster.ray_worker import NodeWorker, Raised, Returned, installed_version
from optimizer.search.worker_pool import Task
from optimizer.study.events import Event, Note, Watcher, WorkerEvent

_RENEW_SECONDS = 2.0
"""Between looks at the nodes of the cluster."""

_ROOM_SECONDS = 60.0
"""After this, a worker that has not started is taken to wait for resources of other work."""

_CLOSE_SECONDS = 20.0


@dataclass(frozen=True)
class Lost:
    """The end of a call whose worker was lost."""

    reason: str


CallEnd = Returned | Raised | Lost
Stage = Literal["starting", "started", "opening", "idle", "busy", "lost"]


@dataclass
class Member:
    """The worker of one slot.

    Attributes:
        since: when it was started.
        stream: of its running call; None while it has none.
        finish: what is done with the end of that call.
        waits: whether it was told that the node has no room for it.
    """

    slot: NodeSlot
    actor: Any
    since: float
    losses: int
    stage: Stage = "starting"
    stream: Any = None
    finish: Callable[[CallEnd], None] = lambda _: None
    task: Task | None = None
    waits: bool = False


def _answer(_: object) -> None:
    """Return nothing: that the call ends shows that the worker has started."""


class RayActors:
    """The workers by name. Nothing happens but in `advance`, which the coordinator calls.

    Args:
        offered: returns the slots that the cluster offers now.
        started: is called with each worker that has started.
        watch: receives the events of all workers, those of tasks as `WorkerEvent`.
    """

    def __init__(
        self,
        offered: Callable[[], Iterable[NodeSlot]],
        started: Callable[[Member], None],
        watch: Watcher,
    ) -> None:
        self._offered = offered
        self._started = started
        self._watch = watch
        self._renewed = -_RENEW_SECONDS
        self.members: dict[str, Member] = {}
        self.refused: dict[str, str] = {}
        self.working_at = time.monotonic()

    def in_stage(self, *stages: Stage) -> list[Member]:
        """Return the workers in some stages."""
        return [member for member in self.members.values() if member.stage in stages]

    def call(
        self,
        member: Member,
        method: str,
        arguments: Sequence[Any],
        finish: Callable[[CallEnd], None],
    ) -> None:
        """Start a call of a method of `NodeWorker`, whose end is given to `finish`."""
        member.stream = getattr(member.actor, method).remote(*arguments)
        member.finish = finish

    def advance(self, seconds: float) -> None:
        """Wait until a worker tells something, and handle it; look after the workers."""
        self._renew()
        streams = [member.stream for member in self._calling()]
        if not streams:
            time.sleep(min(seconds, _RENEW_SECONDS))
            return
        ready, _ = ray.wait(streams, num_returns=1, timeout=seconds)
        for member in self._calling():
            if any(member.stream is stream for stream in ready):
                self._receive(member)

    def refuse(self, member: Member, reason: str) -> None:
        """Keep a node out of the study, with all of its workers."""
        node = member.slot.node
        if member.slot.node_id not in self.refused:
            self._watch(Note(f"node {node} is not used: {reason}", warning=True))
        self.refused[member.slot.node_id] = f"{node}: {reason}"
        for name, other in list(self.members.items()):
            if other.slot.node_id == member.slot.node_id:
                ray.kill(self.members.pop(name).actor)

    def close(self) -> None:
        """End all workers; those that run nothing stop their servers first."""
        resting = [m for m in self.in_stage("started", "idle") if m.stream is None]
        closing = [member.actor.close.remote() for member in resting]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for member in self.members.values():
            if member.stage != "lost":
                ray.kill(member.actor)
        self.members.clear()

    def _calling(self) -> Collection[Member]:
        return [member for member in self.members.values() if member.stream is not None]

    def _receive(self, member: Member) -> None:
        """Handle the next message of a worker, or its loss."""
        try:
            message = ray.get(next(member.stream))
        except RayTaskError:
            raise
        except RayError as error:
            self._lose(member, error)
            return
        match message:
            case Returned() | Raised():
                self._finish(member, message)
            case _:
                self._tell(member, message)

    def _tell(self, member: Member, event: Event) -> None:
        task = member.task
        name = member.slot.name
        self._watch(event if task is None else WorkerEvent(name, task.number, event))

    def _finish(self, member: Member, end: CallEnd) -> None:
        member.stream = None
        member.finish(end)

    def _lose(self, member: Member, error: RayError) -> None:
        """Forget an actor. Its node may be gone too, which Ray knows some seconds later."""
        ray.kill(member.actor)
        member.losses += member.stage != "starting"
        member.stage = "lost"
        self._finish(member, Lost(f"its process or its node is gone (Ray: {type(error).__name__})"))

    def _renew(self) -> None:
        """Start workers on new slots, and those that were lost again where their slot is."""
        now = time.monotonic()
        if now - self._renewed < _RENEW_SECONDS:
            return
        self._renewed = now
        # The name of a node that came back changes once Ray knows that the old one is gone.
        living = [member for member in self.members.values() if member.stage != "lost"]
        held = {(member.slot.node_id, member.slot.index) for member in living}
        names = {member.slot.name for member in living}
        for slot in self._offered():
            taken = (slot.node_id, slot.index) in held or slot.name in names
            if taken or slot.node_id in self.refused:
                continue
            member = self.members.get(slot.name)
            self._start(slot, member.losses if member is not None else 0)
        for member in self.in_stage("starting"):
            if now - member.since > _ROOM_SECONDS and not member.waits:
                member.waits = True
                text = "has not started: other work on the cluster may use its resources"
                self._watch(Note(f"worker {member.slot.name} {text}", warning=True))
        if self.in_stage("started", "opening", "idle", "busy"):
            self.working_at = now

    def _start(self, slot: NodeSlot, losses: int) -> None:
        actor = (
            ray.remote(NodeWorker).options(**slot.actor_options()).remote(slot, installed_version())
        )
        member = Member(slot, actor, time.monotonic(), losses)
        self.members[slot.name] = member

        def started(end: CallEnd) -> None:
            match end:
                case Returned():
                    member.stage = "started"
                    self._started(member)
                case Raised(error):
                    self.refuse(member, str(error))
                case Lost():
                    pass

        self.call(member, "call", (_answer,), started)
