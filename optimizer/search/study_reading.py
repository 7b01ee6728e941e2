"""A study as it stands, read back for what is built on it: recommendations, fleets, what-ifs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optimizer.cost import Candidate, Demand, Price, tie_break_key
from optimizer.errors import UsageError
from optimizer.machine.fingerprint import Machine
from optimizer.measurement import Measurement
from optimizer.search.confirm import candidate_of, certified, held_rounds, levels_near
from optimizer.search.guidance.learnt_forecast import calibrated, with_trials
from optimizer.search.history import History
from optimizer.search.searched_space import SearchedSpace, read_searched
from optimizer.search.study_directory import StudyDirectory
from optimizer.search.study_files import read_begun, read_summary
from optimizer.search.summary import LoadRuns
from optimizer.search.warm_start import relative_to
from optimizer.serving_config import ServingConfig, describe
from optimizer.simulator.service_model import ServiceModel
from optimizer.trial_record import TrialRecord


@dataclass(frozen=True)
class Finding:
    """A configuration that met the limits.

    Attributes:
        candidate: with its cost at the price and demand that were asked about.
        trial: the record of the search that found it.
        confirmed: whether the figures are of the confirm phase.
    """

    candidate: Candidate
    trial: TrialRecord
    confirmed: bool

    def latency_ms(self, percentile: float) -> float | None:
        """At the capacity, the worst over streams and rounds; None where no level is near it."""
        measurement = self.candidate.measurement
        levels = levels_near(measurement, measurement.load_factor)
        if not levels and (level := measurement.level_at_capacity) is not None:
            levels = [level]
        found = [level.latency_ms(percentile) for level in levels]
        return max(found, default=None)


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
    def summary(self) -> Mapping[str, Any] | None:
        """summary.json, None where the study has not ended yet. Raises StorageError."""
        return read_summary(self.directory) if self.directory.summary.exists() else None

    def findings(self, price: Price, demand: Demand) -> list[Finding]:
        """Configurations within the limits, best first by cost and the rules for ties.

        Those that were confirmed; where there is none, all that the search has measured.
        """
        found = self._confirmed(price, demand) or self._measured(price, demand)
        return sorted(found, key=_rank)

    def contenders(self, price: Price, demand: Demand) -> list[Finding]:
        """All configurations within the limits: what was confirmed, then the rest, best first."""
        confirmed = sorted(self._confirmed(price, demand), key=_rank)
        known = {finding.candidate.config for finding in confirmed}
        measured = sorted(self._measured(price, demand), key=_rank)
        return [*confirmed, *(found for found in measured if found.candidate.config not in known)]

    def baseline_among(self, findings: Iterable[Finding]) -> Finding | None:
        """What someone serves who changes nothing; None where it is not one of them."""
        space = self.searched.search_space
        config = space.config(space.baseline)
        return next((each for each in findings if each.candidate.config == config), None)

    @property
    def nothing_found(self) -> str:
        """Why nothing is within the limits, where nothing is."""
        missed = [r for r in self.trials if r.outcome == "infeasible" and r.constraints]
        if missed:
            nearest = min(missed, key=lambda r: max(value for _, value in r.constraints))
            return (
                f"none of {len(self.trials)} trials met the limits; the nearest was "
                f"{describe(nearest.config)}: {nearest.reason}"
            )
        if self.trials:
            return f"none of {len(self.trials)} trials could be measured: {self.trials[-1].reason}"
        return "it has measured nothing yet"

    def _confirmed(self, price: Price, demand: Demand) -> list[Finding]:
        found = []
        for trial in self._met_limits:
            rounds = self.rounds(trial.config)
            held = [relative_to(demand.requests_per_second, each) for each in rounds]
            candidate = certified(trial.config, held, price, demand)
            if candidate is not None:
                found.append(Finding(candidate, trial, confirmed=True))
        return found

    def rounds(self, config: ServingConfig) -> list[Measurement]:
        """What the confirm phase measured of a configuration, as far as it held a load."""
        return held_rounds([r for r in self.confirmations if r.config == config])

    def _measured(self, price: Price, demand: Demand) -> list[Finding]:
        found = []
        for trial in self._met_limits:
            assert trial.measurement is not None, "what met the limits was measured"
            measurement = relative_to(demand.requests_per_second, trial.measurement)
            candidate = candidate_of(trial.config, measurement, price, demand)
            if candidate is not None:
                found.append(Finding(candidate, trial, confirmed=False))
        return found

    @property
    def _met_limits(self) -> Sequence[TrialRecord]:
        return History({record.number: record for record in self.trials}).ok

    @property
    def runs(self) -> LoadRuns:
        """What was measured beside the trials."""
        return LoadRuns(self.calibration, (), self.confirmations)

    @property
    def saturated(self) -> bool:
        """Whether anything tells how long batches take."""
        return bool(self._learnt.observations)

    @property
    def service(self) -> ServiceModel:
        """Service times by all that was saturated. Raises UsageError where nothing was."""
        if not self.saturated:
            raise UsageError(f"study {self.name} has saturated nothing yet: run it first")
        return self._learnt

    @cached_property
    def _learnt(self) -> ServiceModel:
        return with_trials(calibrated(self.calibration, self.searched.workload), self.trials)


def _rank(finding: Finding) -> tuple[float, ...]:
    candidate = finding.candidate
    return (candidate.score.fleet_usd_per_hour, *tie_break_key(candidate), finding.trial.number)


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
    begun = read_begun(directory)
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
        f"there is no study {study} in {results} that was searched, nor a folder of one"
    )
