"""A lease, by which one process at a time may change a study.

Its holder raises a number every few seconds. Whoever wants the lease watches that number by its own
clock, so that no two hosts need to agree on the time: a number that rises belongs to a living
process, one that stands still for `SILENT_SECONDS` to a dead one. On the same machine, the process
itself tells. Where the lease is kept is a `LeaseStore`: a database, or the study's folder.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Protocol, Self

from optimizer.errors import StorageError, StudyBusyError

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A holder on another machine that shows no sign of life for so long is dead."""

_POLL_SECONDS = 1.0
_STATE, _START_TICKS = 0, 19
"""Positions in /proc/PID/stat after the process's name."""

_ENDED = "ZX"
Warn = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        since: when it took the lease; shown, and compared with nothing.
        machine: boot and process namespace; the same for processes that see each other's ids.
        started: when the process was started, in clock ticks since the boot, which no change of the
            clock moves; process ids are used again.
    """

    host: str
    process: int
    user: str
    since: str
    machine: str
    started: int

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process as the holder of a lease."""
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        machine, started = _machine_and_start(os.getpid())
        return cls(socket.gethostname(), os.getpid(), _user(), since, machine, started)

    def __str__(self) -> str:
        return f"process {self.process} of {self.user} on {self.host}, since {self.since}"

    @property
    def text(self) -> str:
        """The process in words, and where to look whether it is alive."""
        where = "" if self.alive_here else "; whether it is alive can only be seen there"
        return f"{self}{where}"

    @property
    def before_reboot(self) -> bool:
        """Whether it ran on another machine, or before this one was booted."""
        return self.machine.partition(" ")[0] != _boot()

    @property
    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        own = os.getpid()
        return self.process == own and (self.machine, self.started) == _machine_and_start(own)

    @property
    def alive_here(self) -> bool | None:
        """Whether the process is alive; None where this machine cannot tell."""
        if self.machine != _machine_and_start(os.getpid())[0]:
            return None
        fields = _stat_fields(self.process)
        if fields is not None:
            return int(fields[_START_TICKS]) == self.started and fields[_STATE] not in _ENDED
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return None  # /proc hides the processes of others


def _stat_fields(process: int) -> list[str] | None:
    """Return the fields of a process after its name; None where /proc has no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


@cache
def _machine_and_start(own_process: int) -> tuple[str, int]:
    fields = _stat_fields(own_process)
    assert fields is not None, "/proc shows a process to itself"
    return f"{_boot()} {Path('/proc/self/ns/pid').readlink()}", int(fields[_START_TICKS])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"user {os.getuid()}"


@dataclass(frozen=True)
class LeaseState:
    """A lease as it was read.

    Attributes:
        token: names the time for which one process holds the lease.
        beat: number that the holder raises.
        holder: None where the lease is free, or what was written of its holder cannot be read.
    """

    token: str = ""
    beat: int = 0
    holder: Holder | None = None
    free: bool = True


class LeaseStore(Protocol):
    """Where the lease of one study is kept. Its operations raise StorageError.

    Attributes:
        where: shown in messages.
    """

    where: str

    def read(self) -> LeaseState:
        """Return the lease as it is now."""

    def take(self, read: LeaseState, own: Holder) -> bool:
        """Take a lease that is free, or whose holder is dead; of several processes one succeeds.

        Args:
            read: as it was read; where it has been taken since, nothing happens.
        """

    def beat(self) -> bool:
        """Raise the number; return False where the lease is not this store's any more."""

    def release(self) -> None:
        """Free the lease, where it is still this store's."""


class Lease:
    """Holds the lease of one study; a context manager. A thread of its own keeps it.

    Args:
        warn: receives what holds up the run, from the thread that enters.

    Raises:
        StudyBusyError: on entering, when another process holds the lease and is alive.
        StorageError: when the store cannot be used.
    """

    def __init__(self, study: str, store: LeaseStore, warn: Warn) -> None:
        self._study = study
        self._store = store
        self._warn = warn
        self._own = Holder.this_process()
        self._ended = Event()
        self._thread = Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(BEAT_SECONDS)  # a store that is away is not waited for

    def require(self) -> None:
        """Check that this process still holds the lease, before it changes the study.

        Raises:
            StorageError: when another process took over, or the store cannot be used.
        """
        if not self._store.beat():
            raise taken_over(self._study, self._store)

    def _take(self) -> None:
        """Take the lease, from a dead holder if need be. Raises StudyBusyError."""
        while True:
            state = self._store.read()
            name = state.holder or "another process"
            if not state.free and self._is_alive(state):
                raise StudyBusyError(
                    f"study {self._study} in {self._store.where} is being run by {name}: wait for "
                    "it, stop it, or start another study with --study NEW"
                )
            if self._store.take(state, self._own):
                break
        if not state.free:
            text = f"study {self._study} was being run by {name}, which is gone"
            self._warn(f"{text}: this run takes it over")

    def _is_alive(self, state: LeaseState) -> bool:
        alive = state.holder.alive_here if state.holder is not None else None
        return self._rises(state) if alive is None else alive

    def _rises(self, state: LeaseState) -> bool:
        """Watch the number of a holder on another machine; return whether it rises."""
        self._warn(
            f"study {self._study} may be run by {state.holder or 'another process'}: watching for "
            f"a sign of life, {SILENT_SECONDS:g} s at most"
        )
        silent = 0.0
        while silent < SILENT_SECONDS:
            time.sleep(_POLL_SECONDS)
            asked = time.monotonic()
            now = self._store.read()
            if (now.token, now.beat) != (state.token, state.beat) or now.free:
                return not now.free
            # A store that did not answer was out of the holder's reach too.
            waited = time.monotonic() - asked > _POLL_SECONDS
            silent = 0.0 if waited else silent + _POLL_SECONDS
        return False

    def _keep(self) -> None:
        """Keep the lease until the run ends, and release it.

        What fails here fails the run where it asks or tells. A store that is away for long may be
        back before the run needs it.
        """
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(StorageError):
                self._store.beat()
        with suppress(StorageError):
            self._store.release()


def taken_over(study: str, store: LeaseStore) -> StorageError:
    """Return the error of a process that no longer holds its lease."""
    state = store.read()
    if state.free:
        return StorageError(f"the lease of study {study} in {store.where} was removed or released")
    return StorageError(
        f"study {study} in {store.where} was taken over by {state.holder or 'another process'}: "
        f"this process gave no sign of life for {SILENT_SECONDS:g} s"
    )
