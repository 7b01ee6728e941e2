"""A read-only view of a study's storage, for the dashboard.

It adapts two things that optuna-dashboard 0.21 does not know of Optuna 5: constraints are stored
one by one, under their names, where the dashboard reads a list; and its best trial ignores them. A
list in the storage itself would double every constraint for the samplers.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any, NoReturn

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

_LIST_OF_CONSTRAINTS = "constraints"


class ChangeRefused(Exception):
    """A change was attempted through the read-only storage."""


class ReadOnlyStorage(BaseStorage):
    """Reads one study of a storage, and refuses every change.

    Args:
        name: of the study.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._name = name

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the one study."""
        return [s for s in self._storage.get_all_studies() if s.study_name == self._name]

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study's objectives."""
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study."""
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study."""
        return self._storage.get_study_system_attrs(study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, with its constraints as a list too."""
        return _with_constraints_list(self._storage.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study, with their constraints as lists too."""
        return [
            _with_constraints_list(t)
            for t in self._storage.get_all_trials(study_id, deepcopy, states)
        ]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the cheapest trial within the limits; of all trials while there is none."""
        trials = self._storage.get_all_trials(study_id, states=[TrialState.COMPLETE])
        within = [trial for trial in trials if trial.user_attrs.get("outcome") == "ok"]
        return _with_constraints_list(min(within or trials, key=lambda trial: trial.values[0]))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ChangeRefused("this dashboard is read-only")

    create_new_study = _refuse
    delete_study = _refuse
    set_study_user_attr = _refuse
    set_study_system_attr = _refuse
    create_new_trial = _refuse
    set_trial_param = _refuse
    set_trial_state_values = _refuse
    set_trial_intermediate_value = _refuse
    set_trial_user_attr = _refuse
    set_trial_system_attr = _refuse


def _with_constraints_list(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial with its constraints as a list too, which the dashboard reads."""
    constraints = [*trial.constraints.values()]
    if not constraints:
        return trial
    copied = copy.copy(trial)
    copied._system_attrs = {**trial.system_attrs, _LIST_OF_CONSTRAINTS: constraints}
    return copied
