"""The watcher that stores files with the trials of a study, for the dashboard.

No search reads these files, and a write error ends no run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError, storage_errors
from optimizer.files.owned_names import temporary_folder
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, Note, TrialRecorded, TrialStarted, Watcher
from optimizer.study.optuna_study import OptunaStudy

_TAIL_BYTES = 16_384

Files = Callable[[ServingConfig], Mapping[str, str]]
"""Returns the texts, by file name, that a configuration is served with."""


class TrialFiles:
    """A watcher that stores each trial's model files, and the server log of failed trials.

    Args:
        study: that proposes the trials.
        files: see `Files`.
        tell: receives a warning when files can no longer be written.
    """

    def __init__(
        self, study: OptunaStudy, directory: StudyDirectory, files: Files, tell: Watcher
    ) -> None:
        self._study = study
        self._directory = directory
        self._files = files
        self._tell = tell
        self._running = set[int]()
        self._enabled = True

    def __call__(self, event: Event) -> None:
        """Store the files of an event."""
        match event:
            # A trial whose worker is lost starts again.
            case TrialStarted(number, _, _, config) if number not in self._running:
                self._running.add(number)
                self._attach(number, self._files(config))
            case TrialRecorded(record):
                self._running.discard(record.number)
                self._attach_log(record)
            case _:
                pass

    def _attach_log(self, record: TrialRecord) -> None:
        if record.outcome == "failed":
            text = tail(self._directory.server_log_of(record), _TAIL_BYTES)
            self._attach(record.number, {"server-log-tail.txt": text} if text else {})

    def _attach(self, number: int, files: Mapping[str, str]) -> None:
        if not self._enabled:
            return
        folder = self._directory.artifacts
        try:
            with storage_errors(folder), temporary_folder() as temporary:
                folder.mkdir(parents=True, exist_ok=True)
                for name, text in files.items():
                    file = temporary / name
                    file.write_text(text, encoding="utf-8")
                    self._study.attach(number, file, folder)
        except StorageError as error:
            self._enabled = False
            self._tell(Note(f"dashboard files are no longer written: {error}", True))


def tail(path: Path, size_bytes: int) -> str:
    """Return the last whole lines of a text file; nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - size_bytes))
            content = file.read()
    except OSError:
        return ""
    text = content.decode("utf-8", errors="replace")
    return text if end <= size_bytes else text.partition("\n")[2]
