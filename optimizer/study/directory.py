"""results/<study>/: the paths of a study's files, its record stores and its lock."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import IO, Any

from optimizer.errors import DamagedStudyError, StudyBusyError, UsageError, storage_errors
from optimizer.files.untrusted import UnreadableError, parse_json, read_bytes
from optimizer.measurement.cold_start import ColdStart
from optimizer.measurement.transport_costs import TransportComparison
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.disturbance_file import DisturbanceFile
from optimizer.study.record_store import RecordStore
from optimizer.study.winner_file import WinnerFile

_LOCK_PROBE_SECONDS = 0.2


class StudyDirectory:
    """The files of one study.

    Args:
        root: results/<study>; made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
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

    @property
    def name(self) -> str:
        """The study's name."""
        return self.root.name

    def of_worker(self, name: str) -> StudyDirectory:
        """Return the same study with the server files of one of several workers."""
        own = copy(self)
        own.repository = self.root / "server" / name / "repository"
        own.server_log = self.server_log.with_name(f"server.{name}.log")
        return own

    def server_log_of(self, record: TrialRecord) -> Path:
        """Return the log of the server that measured a trial."""
        own = self.of_worker(record.worker).server_log
        return own if record.worker and own.exists() else self.server_log

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the study, which one process at a time may run. The lock ends with the process.

        Raises:
            UsageError: when the directory cannot be made or written.
            StudyBusyError: when another process holds the lock.
        """
        path = self.root / "lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refuses must not be written again on closing.
            file = path.open("a+b", buffering=0)
        except OSError as error:
            raise UsageError(
                f"results cannot be written to {self.root}: {error.strerror}"
            ) from error
        with file:
            if not _take_lock(file):
                file.seek(0)
                holder = file.read().decode().strip() or "unknown"
                raise StudyBusyError(f"study {self.name} is being run by process {holder}")
            with storage_errors(path):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield

    @property
    def running(self) -> bool:
        """Whether a process is running the study now."""
        try:
            with (self.root / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

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


def _take_lock(file: IO[bytes]) -> bool:
    """Take the lock, after waiting out a `running` check, which holds it for a moment."""
    end = time.monotonic() + _LOCK_PROBE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)


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
