"""The notes and files of an Optuna study, as optuna-dashboard stores them."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import Trial

from optimizer.errors import UsageError, storage_errors
from optimizer.files.owned_names import temporary_folder
from optimizer.study.optuna_storage import close_storage, open_storage, storage_failures


def dashboard_installed() -> bool:
    """Return whether optuna-dashboard is installed, which stores notes."""
    return importlib.util.find_spec("optuna_dashboard") is not None


@cache
def _notes() -> ModuleType:
    """Return optuna-dashboard's functions of notes, without its server.

    Importing the whole package takes two seconds, most of them for scikit-learn.
    """
    package = importlib.util.find_spec("optuna_dashboard")
    file = Path(package.origin if package and package.origin else "").with_name("_note.py")
    spec = importlib.util.spec_from_file_location("optuna_dashboard_note", file)
    if not file.exists() or spec is None or spec.loader is None:
        return importlib.import_module("optuna_dashboard")
    notes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notes)
    return notes


class DashboardStudy:
    """Writes the notes and files of a study; a context manager that closes the storage.

    Args:
        artifacts: folder of the files.
        storage: URL of a database; None where the study is in the journal.

    Raises:
        UsageError: where the study does not exist.
        StorageError: when the storage cannot be opened, and by every method when it, or the
            folder, cannot be written.
    """

    def __init__(self, name: str, journal: Path, storage: str | None, artifacts: Path) -> None:
        self._where = str(journal) if storage is None else "the study storage"
        self._artifacts = artifacts
        with storage_failures(self._where):
            self._storage = open_storage(journal, storage)
            try:
                self._study = optuna.load_study(
                    study_name=name, storage=self._storage, sampler=RandomSampler()
                )
            except KeyError as error:
                raise UsageError(f"study {name!r} not found in {self._where}") from error

    def __enter__(self) -> DashboardStudy:
        return self

    def __exit__(self, *_: object) -> None:
        close_storage(self._storage)

    def note(self, text: str) -> None:
        """Replace the study's note where it differs."""
        with storage_failures(self._where):
            if _notes().get_note(self._study) != text:
                _notes().save_note(self._study, text)

    def note_trial(self, number: int, text: str) -> None:
        """Replace a trial's note."""
        with storage_failures(self._where):
            _notes().save_note(self._trial(number), text)

    def trials_without_note(self, numbers: list[int]) -> list[int]:
        """Return the existing trials among these that have no note."""
        with storage_failures(self._where):
            existing = {trial.number for trial in self._study.get_trials(deepcopy=False)}
            return [n for n in numbers if n in existing and not _notes().get_note(self._trial(n))]

    def name_constraints(self, names: list[str]) -> None:
        """Store the constraints' names, in the order of their values."""
        with storage_failures(self._where):
            self._study.set_user_attr("constraints", names)

    def attach(self, number: int, name: str, text: str) -> None:
        """Store a file with a trial that is not finished yet."""
        # Optuna's artifact stores import boto3 where it is installed, which takes a second.
        from optuna.artifacts import FileSystemArtifactStore, upload_artifact

        with storage_errors(self._artifacts), temporary_folder() as folder:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            file = folder / name
            file.write_text(text, encoding="utf-8")
            with storage_failures(self._where):
                upload_artifact(
                    artifact_store=FileSystemArtifactStore(self._artifacts),
                    file_path=str(file),
                    study_or_trial=self._trial(number),
                    mimetype="text/plain",
                )

    def _trial(self, number: int) -> Trial:
        study_id = self._study._study_id
        return Trial(
            self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        )
