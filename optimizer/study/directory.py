"""results/<study>/: the paths of a study's files, its record stores and its lease."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from optimizer.errors import DamagedStudyError, StorageError, UsageError, is_disk_full
from optimizer.files.untrusted import UnreadableError, parse_json, read_bytes
from optimizer.measurement.bursts import BurstComparison
from optimizer.measurement.cold_start import ColdStart
from optimizer.measurement.transport_costs import TransportComparison
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.disturbance_file import DisturbanceFile
from optimizer.study.folder_lease import FolderLease
from optimizer.study.lease import Holder, Lease, Warn, taken_over
from optimizer.study.record_store import RecordStore
from optimizer.study.winner_file import WinnerFile


class StudyDirectory:
    """The files of one study.

    Args:
        root: results/<study>; made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lease = root / "lease"
        self.journal = root / "study.journal"
        self.space = root / "space.json"
        self.searched = root / "searched.json"
        self.sources = root / "sources.json"
        self.prepared = root / "prepared.json"
        self.summary = root / "summary.json"
        self.best = root / "best"
        self.baseline = root / "baseline"
        self.repository = root / "server" / "repository"
        self.server_log = root / "logs" / "server.log"
        self.worker_log = root / "logs" / "worker.log"
        self.build_log = root / "logs" / "build.log"
        self.run_log = root / "logs" / "run.log"
        self.progress = root / "progress.json"
        self.artifacts = root / "artifacts"
        self.calibration = RecordStore(root / "calibration")
        self.prior = RecordStore(root / "prior")
        self.trials = RecordStore(root / "trials", scored=True, reported=True)
        self.confirmations = RecordStore(root / "confirmations", reported=True)
        self.drift_runs = RecordStore(root / "references")
        self.disturbance = DisturbanceFile(root / "disturbance.json")
        self.cold_start = WinnerFile(root / "winner" / "cold_start.json", ColdStart)
        self.transports = WinnerFile(root / "winner" / "transports.json", TransportComparison)
        self.bursts = WinnerFile(root / "winner" / "bursts.json", BurstComparison)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.root.name

    def of_worker(self, name: str) -> StudyDirectory:
        """Return the same study with the server files of one of several workers."""
        own, name = copy(self), name.replace("/", ".")  # one of several on a node is NODE/0
        own.repository = self.root / "server" / name / "repository"
        own.server_log = self.server_log.with_name(f"server.{name}.log")
        own.worker_log = self.worker_log.with_name(f"worker.{name}.log")
        return own

    def server_log_of(self, record: TrialRecord) -> Path:
        """Return the log of the server that measured a trial."""
        own = self.of_worker(record.worker).server_log
        return own if record.worker and own.exists() else self.server_log

    @contextmanager
    def locked(self, warn: Warn = lambda _: None) -> Iterator[None]:
        """Hold the study's lease, which one process at a time has.

        Args:
            warn: receives what holds up the run.

        Raises:
            UsageError: when the directory cannot be made or written.
            StudyBusyError: when another process, on whichever host, holds the lease.
            StorageError: when the disk is full.
        """
        try:
            if self._lease.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "lease is a link to another folder")
            self._lease.mkdir(parents=True, exist_ok=True)
            os.utime(self._lease)  # refused where nothing can be written
        except OSError as error:
            if is_disk_full(error):
                raise StorageError(f"cannot write {self._lease}: {error.strerror}") from error
            raise UsageError(
                f"results cannot be written to {self.root}: {error.strerror}"
            ) from error
        with Lease(self.name, FolderLease(self._lease), warn):
            yield

    def require_lease(self) -> None:
        """Check that this process still holds the lease, before it changes the study.

        Raises:
            StorageError: when another process took over, or the directory is gone.
        """
        store = FolderLease(self._lease)
        holder = store.read().holder
        if holder is None or not holder.is_this_process:
            raise taken_over(self.name, store)

    @property
    def holder(self) -> Holder | None:
        """The process that holds the lease; None where it is free, or its holder is dead.

        On another machine than the holder's nobody can tell at once whether it is alive.
        """
        try:
            holder = FolderLease(self._lease).read().holder
        except StorageError:
            return None
        return holder if holder is not None and holder.alive_here is not False else None

    @property
    def running(self) -> bool:
        """Whether a process is running the study now, as far as this machine can tell."""
        return self.holder is not None

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read one of the study's JSON files; reading a missing key names the file.

        Raises:
            DamagedStudyError: now, or when a key is read that is missing.
        """

        class Object(dict[str, Any]):
            def __missing__(self, key: str) -> Any:
                raise DamagedStudyError(path, f"{key} is missing")

        try:
            data = parse_json(read_bytes(path), Object)
        except UnreadableError as error:
            raise DamagedStudyError(path, error) from error
        if not isinstance(data, Object):
            raise DamagedStudyError(path, "must be a JSON object")
        return data


class RecordingDirectory(StudyDirectory):
    """The files of an exhaustive recording, whose `trials` hold the measurements of every point.

    Args:
        root: results/<study>/recorded; made on first use.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.table = root / "table.csv"
        self.latencies = RecordStore(root / "latencies")
        self.repeats = RecordStore(root / "repeats")
