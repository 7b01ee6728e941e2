"""A study read back from its folder, for recommendations, fleets and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optimizer.analysis.nothing_confirmed import nothing_confirmed
from optimizer.analysis.run_summary import LoadRuns
from optimizer.analysis.summary import StudySummary, current_summary
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand, Price
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.informative_trials import informative, told_or_worst
from optimizer.search.lent_calibration import read_prior
from optimizer.search.surrogate.learnt_forecast import (
    MOST_TRIALS,
    calibrated,
    to_scale,
    with_trials,
)
from optimizer.simulator.response_cache import answered_by_cache
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_prior import ServicePrior
from optimizer.study.decision import ConfirmedCapacity, Decision, decide
from optimizer.study.directory import StudyDirectory
from optimizer.study.files import read_start
from optimizer.study.progress_file import best_so_far
from optimizer.study.searched_space import SearchedSpace, read_searched


@dataclass(frozen=True)
class StudyReading:
    """What lies in a study's directory.

    Attributes:
        content: of the space file, see `Space.content`.
        machine: that everything in it was measured on.
    """

    directory: StudyDirectory
    content: Mapping[str, Any]
    searched: SearchedSpace
    machine: Machine
    trials: tuple[TrialRecord, ...]
    calibration: tuple[TrialRecord, ...]
    confirmations: tuple[TrialRecord, ...]

    @property
    def name(self) -> str:
        """The study's name."""
        return self.directory.name

    @property
    def summary(self) -> StudySummary | None:
        """The study's summary; None where it has not ended since its last record was written.

        Raises:
            StorageError: when the file is damaged, or a newer version wrote it.
        """
        best = best_so_far(self.own_decision.best)
        return current_summary(self.directory, len(self.trials), best)

    def decision(self, price: Price, demand: Demand) -> Decision:
        """Return what the study recommends at a price and a demand."""
        space = self.searched.search_space
        return decide(self.trials, self.confirmations, price, demand, space)

    @cached_property
    def own_decision(self) -> Decision:
        """What the study recommends at its own price and demand."""
        return self.decision(self.searched.price, self.searched.demand)

    @property
    def baseline(self) -> ServingConfig:
        """What someone serves who changes nothing."""
        space = self.searched.search_space
        return space.config(space.baseline)

    @property
    def why_nothing_confirmed(self) -> str:
        """Why nothing is within the limits, where nothing is."""
        return nothing_confirmed(self.trials, self.confirmations).reason

    @property
    def runs(self) -> LoadRuns:
        """What was measured beside the trials."""
        return LoadRuns(self.calibration, (), self.confirmations)

    def setup_seconds(self, finding: ConfirmedCapacity) -> float:
        """Return the time until a configuration serves on a running machine.

        It is measured from the start of the server where the run has measured cold starts, and
        otherwise what its trial took, which may have had a server that was running already.
        """
        cold = self.directory.cold_start.read(finding.candidate.config)
        return finding.trial.seconds.serving if cold is None else cold.as_served.ready_seconds

    @property
    def saturated(self) -> bool:
        """Whether anything tells how long batches take, and what a response cache answers."""
        return not self._unknown_cache and bool(self._learnt.observations)

    @property
    def _unknown_cache(self) -> tuple[str, ...]:
        """The models whose requests a cache may answer, where nothing tells how many."""
        if any(level.entry_bytes for level in self._learnt.cached_levels):
            return ()
        return answered_by_cache(self.searched.workload, self.searched.search_space)

    @property
    def service(self) -> ServiceModel:
        """Service times by all that was saturated.

        Raises:
            UsageError: where nothing was, or nothing tells what a response cache answers.
        """
        if self._unknown_cache:
            raise UsageError(
                f"study {self.name}: a response cache answers repeated requests to "
                f"{', '.join(self._unknown_cache)}, and no measurement of the study tells how "
                "large its responses are: measure the configuration instead, or search it again"
            )
        if not self.saturated:
            raise UsageError(
                f"study {self.name} has no measurement at saturation yet: run it first"
            )
        return self._learnt

    @cached_property
    def _learnt(self) -> ServiceModel:
        shown = informative(sorted(self.trials, key=told_or_worst), MOST_TRIALS)
        service = with_trials(self.calibrated, shown, self.searched.workload)
        return to_scale(service, self._prior, self.calibration)

    @cached_property
    def calibrated(self) -> ServiceModel:
        """Service times after the calibrate phase, with what another study has lent."""
        service = calibrated(self.calibration, self.searched.workload, self._prior)
        return to_scale(service, self._prior, self.calibration)

    @cached_property
    def _prior(self) -> ServicePrior | None:
        return read_prior(self.directory, self.searched.workload)


def read_study(results: Path, study: str) -> StudyReading:
    """Read a study.

    Args:
        results: folder of the studies.
        study: a name in it, or the path of a study's own folder, which may have come from another
            machine.

    Raises:
        UsageError: where there is no such study, or it has not come to its search yet.
        StorageError: when its files are damaged.
    """
    directory = _directory(results, study)
    begun = read_start(directory)
    stores = (directory.trials, directory.calibration, directory.confirmations)
    trials, calibration, confirmations = (tuple(s.read_all().values()) for s in stores)
    return StudyReading(
        directory=directory,
        content=begun.content,
        searched=read_searched(directory),
        machine=begun.machine,
        trials=trials,
        calibration=calibration,
        confirmations=confirmations,
    )


def read_studies(results: Path, studies: Sequence[str]) -> dict[str, StudyReading]:
    """Read several studies, each under a name that no other one of them has.

    That is its own name; what is written in `studies` where several are called the same.

    Raises:
        UsageError: as of `read_study`, and where one is named more than once.
        StorageError: when files are damaged.
    """
    readings = [read_study(results, study) for study in studies]
    folders = Counter(reading.directory.root.resolve() for reading in readings)
    if twice := [str(folder) for folder, count in folders.items() if count > 1]:
        raise UsageError(f"named more than once: {', '.join(twice)}")
    called = Counter(reading.name for reading in readings)
    return {
        text if called[reading.name] > 1 else reading.name: reading
        for reading, text in zip(readings, studies, strict=True)
    }


def _directory(results: Path, study: str) -> StudyDirectory:
    for root in (results.absolute() / study, Path(study).absolute()):
        directory = StudyDirectory(root)
        if directory.searched.exists():
            return directory
    raise UsageError(
        f"study {study!r} not found: must be the name of a study in {results}, or a folder of one"
    )
