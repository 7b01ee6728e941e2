"""A study's storage as the dashboard may see it: one study, and nothing can be changed.

It mends two things that optuna-dashboard 0.21 does not know of Optuna 5: constraints are kept one
by one, under their names, and the dashboard looks for a list; and its best trial ignores them. A
list in the storage itself would double every constraint for the samplers.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any, NoReturn

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

_LIST_OF_CONSTRAINTS = "constraints"


class ChangeRefused(Exception):
    """Something was to be changed."""


class ReadOnlyStorage(BaseStorage):
    """Passes on what is asked of one study.

    Args:
        name: of the study.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._name = name

    def get_all_studies(self) -> list[FrozenStudy]:
        """The one study."""
        return [s for s in self._storage.get_all_studies() if s.study_name == self._name]

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`."""
        return self._storage.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage`."""
        return self._storage.get_study_name_from_id(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage`."""
        return self._storage.get_study_directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._storage.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._storage.get_study_system_attrs(study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`."""
        return _with_list(self._storage.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """See `BaseStorage`."""
        return [_with_list(t) for t in self._storage.get_all_trials(study_id, deepcopy, states)]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The cheapest of those within the limits; of all, while there is none."""
        trials = self._storage.get_all_trials(study_id, states=[TrialState.COMPLETE])
        within = [trial for trial in trials if trial.user_attrs.get("outcome") == "ok"]
        return _with_list(min(within or trials, key=lambda trial: trial.values[0]))

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Refused."""
        _refuse()

    def delete_study(self, study_id: int) -> None:
        """Refused."""
        _refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Refused."""
        _refuse()

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Refused."""
        _refuse()

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Refused."""
        _refuse()

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Refused."""
        _refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()


def _refuse() -> NoReturn:
    raise ChangeRefused("this dashboard shows a study and changes nothing of it")


def _with_list(trial: FrozenTrial) -> FrozenTrial:
    """The trial with its constraints as a list too, as the dashboard reads them."""
    constraints = [*trial.constraints.values()]
    if not constraints:
        return trial
    seen = copy.copy(trial)
    seen._system_attrs = {**trial.system_attrs, _LIST_OF_CONSTRAINTS: constraints}
    return seen
