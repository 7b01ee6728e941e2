"""The watchers that write a study's notes and trial files for the dashboard during a run.

Only the run writes, while it holds the study's lock; the dashboard is read-only. No search reads
these notes and files, and a write error ends no run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.dashboard.dashboard_study import DashboardStudy, dashboard_installed
from optimizer.study.dashboard.markdown import study_note, trial_note
from optimizer.study.decision import RunningDecision
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import (
    Event,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    TrialFinished,
    TrialRecorded,
    TrialStarted,
    Watcher,
)
from optimizer.study.searched_space import SearchedSpace, read_searched

_TAIL_BYTES = 16_384

Files = Callable[[ServingConfig], Mapping[str, str]]
"""Returns the texts, by file name, that a configuration is served with."""


class StudyNotes:
    """A watcher that writes the notes of a study and its trials.

    Args:
        directory: of the study, with the results of earlier runs.
        searched: the searched space; it is read again when the search starts.
        constraints: their names.
        tell: receives a warning when notes can no longer be written.
    """

    def __init__(
        self,
        shown: DashboardStudy,
        directory: StudyDirectory,
        searched: SearchedSpace,
        constraints: Sequence[str],
        tell: Watcher,
    ) -> None:
        self._shown = shown
        self._directory = directory
        self._searched = searched
        self._constraints = constraints
        self._tell = tell
        self._phase = ""
        self._trials = dict(directory.trials.read_all())
        self._confirmations = dict(directory.confirmations.read_all())
        self._decision = self._decide()
        self._regret_bound: float | None = None
        self._enabled = dashboard_installed()

    def __call__(self, event: Event) -> None:
        """Update the notes by an event."""
        match event:
            case PhaseStarted(phase):
                self._phase = phase
                self._write(self._begin_phase)
            case SearchStatusChanged(status):
                self._regret_bound = status.regret_bound
            case TrialFinished(record) if self._phase == "search":
                self._trials[record.number] = record
                self._decision.add(record)
                self._write(lambda: self._note_trial(record))
            case TrialFinished(record) if self._phase == "confirm":
                self._confirmations[record.number] = record
                self._decision = self._decide()
                self._write(lambda: self._note(f"phase {self._phase}"))
            case _:
                pass

    def end(self, how: str) -> None:
        """Write how the study ended, and its result."""
        self._regret_bound = None
        self._write(lambda: self._note(how))

    def catch_up(self) -> None:
        """Write missing notes: of earlier versions, or where none could be written."""
        for number in self._shown.trials_without_note(sorted(self._trials)):
            self._shown.note_trial(number, trial_note(self._trials[number]))

    def _begin_phase(self) -> None:
        if self._phase == "search":
            self._searched = read_searched(self._directory)
            self._shown.name_constraints([*self._constraints])
            self._trials = dict(self._directory.trials.read_all())
            self._decision = self._decide()
            self.catch_up()
        self._note(f"phase {self._phase}")

    def _note_trial(self, record: TrialRecord) -> None:
        self._shown.note_trial(record.number, trial_note(record))
        self._note(f"phase {self._phase}")

    def _decide(self) -> RunningDecision:
        own, confirmations = self._searched, self._confirmations.values()
        return RunningDecision(
            self._trials.values(), confirmations, own.price, own.demand, own.search_space
        )

    def _note(self, phase: str) -> None:
        space, records = self._searched.search_space, list(self._trials.values())
        baseline, decision = space.config(space.baseline), self._decision.decision
        name = self._directory.name
        self._shown.note(study_note(name, phase, records, decision, baseline, self._regret_bound))

    def _write(self, write: Callable[[], None]) -> None:
        if not self._enabled:
            return
        try:
            write()
        except StorageError as error:
            self._enabled = False
            self._tell(Note(f"dashboard notes are no longer written: {error}", True))


class TrialFiles:
    """A watcher that stores each trial's model files, and the server log of failed trials.

    Args:
        files: see `Files`.
        log_of: returns the log of the server that measured a trial.
        tell: receives a warning when files can no longer be written.
    """

    def __init__(
        self,
        shown: DashboardStudy,
        files: Files,
        log_of: Callable[[TrialRecord], Path],
        tell: Watcher,
    ) -> None:
        self._shown = shown
        self._files = files
        self._log_of = log_of
        self._tell = tell
        self._started = set[int]()
        self._enabled = True

    def __call__(self, event: Event) -> None:
        """Store the files of an event."""
        match event:
            # A trial whose worker is lost starts again.
            case TrialStarted(number, _, _, config) if number not in self._started:
                self._started.add(number)
                self._attach(number, self._files(config))
            case TrialRecorded(record) if record.outcome == "failed":
                text = tail(self._log_of(record), _TAIL_BYTES)
                if text:
                    self._attach(record.number, {"server-log-tail.txt": text})
            case _:
                pass

    def _attach(self, number: int, files: Mapping[str, str]) -> None:
        if not self._enabled:
            return
        try:
            for name, text in files.items():
                self._shown.attach(number, name, text)
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
