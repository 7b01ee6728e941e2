"""A study from the space file to its summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.pareto_front import pareto_front
from optimizer.analysis.summary import LoadRuns, StudySummary, summarise, write_summary
from optimizer.commands.finished import finished_summary
from optimizer.commands.hosts import require_host
from optimizer.commands.parts import (
    RunPlace,
    machine_json,
    open_space,
    require_one_limit,
    require_packages,
    require_same_space,
    search_protocol,
    slot_of,
    study_context,
    warn_of_space_file,
)
from optimizer.commands.sampler_choice import Strategies
from optimizer.commands.with_progress import with_progress
from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import UsageError
from optimizer.export.bundle.commented_config import origins_in
from optimizer.export.bundle.repository import (
    Provenance,
    labels_in,
    remove_model_repository,
    write_model_repository,
)
from optimizer.files.shipped import shipped
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.confirm import Confirmed, ConfirmPhase
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.loop import SearchEnd, SearchLoop
from optimizer.search.prepare import Prepared
from optimizer.search.published_grid import published_positions
from optimizer.search.samplers import CALIBRATED, SAMPLER_PACKAGES, SAMPLERS, Strategy
from optimizer.space_file.reader import Budget, Space
from optimizer.study.dashboard.shown_study import ShownStudy
from optimizer.study.dashboard.writer import StudyNotes, TrialFiles
from optimizer.study.decision import contradicted_by
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher, to_all
from optimizer.study.files import read_source_cards, read_start, write_source_cards
from optimizer.study.gated_artifact import reject_wrong_answers
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.searched_space import SearchedSpace, write_searched
from optimizer.study.trial_records import objective_names
from optimizer.study.warm_start import blocking_differences, carried_over, differences
from optimizer.triton.session import config_texts, files_of

_HOW_TO_GO_ON = (
    "go on with what it was begun with, or begin another that takes over what still holds: "
    "--study NEW --warm-start {}"
)


@dataclass(frozen=True)
class RunRequest:
    """What one `run` was asked to do; None leaves the space file's own value.

    Attributes:
        space: the file, or what was read of it.
        results: folder that holds the studies.
        cache: folder of the artefact cache.
        storage: URL of a study database; None keeps a journal in the study's folder.
        warm_start: name of a study in `results` whose measurements are taken over.
        also_limits_ms: latency limits beside the space file's: a study of several objectives.
        sampler: guided where None; tpe for several objectives, of which guided knows nothing.
        enqueue: what is measured before anything is proposed: the eight configurations of the
            published benchmark, as far as the space holds them.
    """

    space: Path | Space
    results: Path
    cache: Path
    study: str | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    seed: int = 0
    sampler: str | None = None
    storage: str | None = None
    warm_start: str | None = None
    enqueue: Literal["published"] | None = None
    also_limits_ms: tuple[float, ...] = ()

    @property
    def chosen_sampler(self) -> str:
        """Its name."""
        return self.sampler or ("tpe" if self.also_limits_ms else "guided")

    @property
    def extra_limits_ms(self) -> tuple[float, ...]:
        """The further limits, ascending."""
        return tuple(sorted(set(self.also_limits_ms)))


@dataclass(frozen=True)
class RunResult:
    """What a run left: the summary, and whether it was there already."""

    directory: StudyDirectory
    summary: StudySummary
    was_finished: bool


def run_study(request: RunRequest, watch: Watcher) -> RunResult:
    """Run a study to its end, from wherever it stands.

    Everything that can be known to be missing or wrong is found before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    started = time.monotonic()
    space = _with_request(open_space(request.space), request)
    if request.also_limits_ms:
        _hold_to_what_several_limits_permit(request, space)
    slot = slot_of(space)
    server = require_host(space, slot)
    require_packages(space, SAMPLER_PACKAGES[request.chosen_sampler])
    machine = this_machine(server, space.search_space.hardware.gpus)
    directory = StudyDirectory(request.results.absolute() / space.study)
    if request.warm_start is not None and not directory.trials.read_all():
        _hold_to_what_holds_here(request.results, request.warm_start, space, machine)
    with directory.locked():
        remedy = _HOW_TO_GO_ON.format(directory.name)
        require_same_space(directory, space, machine, remedy, request.extra_limits_ms)
        if (
            summary := finished_summary(directory, space.budget, request.chosen_sampler)
        ) is not None:
            return RunResult(directory, summary, was_finished=True)
        place = RunPlace(directory, request.cache, slot, space.host)
        with with_progress(directory, watch) as watch_all:
            study = _Study(request, space, place, machine, watch_all)
            return RunResult(directory, study.run(started), was_finished=False)


def _with_request(space: Space, request: RunRequest) -> Space:
    budget = Budget(
        request.trials or space.budget.trials,
        request.timeout_seconds or space.budget.wall_clock_seconds,
    )
    return replace(space, study=request.study or space.study, budget=budget)


def _hold_to_what_several_limits_permit(request: RunRequest, space: Space) -> None:
    require_one_limit(space.workload, "--also-limit")
    own_ms = space.workload.shortest_limit_ms
    if own_ms in request.also_limits_ms:
        raise UsageError(
            f"--also-limit: must be another limit than the space file's; got {own_ms:g} ms"
        )
    if request.chosen_sampler in CALIBRATED:
        others = ", ".join(name for name in SAMPLERS if name not in CALIBRATED)
        raise UsageError(
            f"--sampler: must be one of {others} with --also-limit; got {request.sampler}, which "
            "minimises the cost within one limit"
        )
    if request.warm_start is not None:
        raise UsageError(
            "--warm-start: must be left out with --also-limit: the other study's trials have no "
            f"cost within further limits; got {request.warm_start}"
        )


def _hold_to_what_holds_here(results: Path, name: str, space: Space, machine: Machine) -> None:
    """A study is taken over only where its measurements would come out the same."""
    other = StudyDirectory(results.absolute() / name)
    if not other.space.exists():
        raise UsageError(f"--warm-start: there is no study {name} in {results}")
    begun = read_start(other)
    blocking = [
        *blocking_differences(begun.content, space.content),
        *(
            text
            for _, text in differences(begun.machine.to_json(), machine.to_json(), ("machine",))
        ),
    ]
    if blocking:
        lines = "\n".join(f"  {text}" for text in blocking)
        raise UsageError(f"--warm-start: nothing measured in {name} holds here:\n{lines}")


class _Study:
    """One run of one study: its parts, joined, and its phases in their order."""

    def __init__(
        self,
        request: RunRequest,
        space: Space,
        place: RunPlace,
        machine: Machine,
        watch: Watcher,
    ) -> None:
        self._request = request
        self._space = space
        self._place = place
        self._directory = place.directory
        self._machine = machine
        self._watch = watch
        self._templates = shipped("model_repository_templates")
        self._sampler, self._further_ms = request.chosen_sampler, request.extra_limits_ms
        self._setting = study_context(space, place.slot, machine, self._further_ms)

    def run(self, started: float) -> StudySummary:
        """All phases; returns the summary that was written."""
        self._place.introduce(self._machine, self._watch)
        warn_of_space_file(self._space, self._watch)
        # A storage that cannot be opened is known now, and not after everything is built.
        strategies = self._strategies(self._space.search_space, History({}))
        strategy = strategies.uncalibrated(self._sampler)
        self._open_study(self._space.search_space, strategy).close()
        with self._shown() as shown:
            notes = self._notes(shown)
            self._watch = to_all(self._watch, notes)
            summary = self._phases(started, shown)
            notes.end(f"ended: {summary.ended}")
        # Last: what is cut off before is made good by the run that goes on.
        write_summary(self._directory, summary)
        return summary

    def _phases(self, started: float, shown: ShownStudy) -> StudySummary:
        with self._place.session(self._space) as session:
            prepared = self._place.prepare(session, self._space, self._watch)
            history = self._take_over(prepared)
            seed = self._request.seed
            with self._place.evaluator(
                session, self._space, prepared, seed, self._watch, self._further_ms
            ) as evaluator:
                ended = self._search(evaluator, history, prepared, shown)
                confirmed = self._confirm(evaluator, history, prepared)
        self._hand_out(confirmed, prepared)
        return self._summarise(started, ended, history, confirmed, prepared)

    def _shown(self) -> ShownStudy:
        directory, storage = self._directory, self._request.storage
        return ShownStudy(self._space.study, directory.journal, storage, directory.artifacts)

    def _notes(self, shown: ShownStudy) -> StudyNotes:
        searched, names = self._searched(self._space.search_space), self._setting.limit_names
        return StudyNotes(shown, self._directory, searched, names, self._watch)

    def _files(self, shown: ShownStudy, prepared: Prepared) -> TrialFiles:
        """What is kept of each trial for the dashboard."""
        return TrialFiles(
            shown,
            lambda config: config_texts(config, files_of(config, prepared.files), self._templates),
            self._directory.server_log,
            self._watch,
        )

    def _search(
        self, evaluator: LiveEvaluator, history: History, prepared: Prepared, shown: ShownStudy
    ) -> SearchEnd:
        """The calibrate phase, where the sampler has use for one, and the search."""
        started = time.monotonic()
        write_searched(self._directory, self._searched(prepared.space))
        write_source_cards(self._directory, self._space.models)
        strategies = self._strategies(prepared.space, history)
        strategy = strategies.calibrated(self._sampler, evaluator, self._directory, self._watch)
        with self._open_study(prepared.space, strategy) as study:
            study.reconcile({record.number: record for record in history.records})
            loop = SearchLoop(
                study,
                prepared.space,
                evaluator,
                self._directory,
                history,
                self._setting,
                to_all(self._watch, self._files(shown, prepared)),
            )
            # The calibration is part of what a person has time for.
            spent_seconds = time.monotonic() - started
            first = self._enqueued(prepared.space)
            return loop.run(
                self._space.budget, strategy.advise, spent_seconds, first, strategy.explain
            )

    def _enqueued(self, space: SearchSpace) -> list[Position]:
        """Points that were asked to be measured first."""
        if self._request.enqueue is None:
            return []
        eight = published_positions(space)
        if missing := [name for name, position in eight.items() if position is None]:
            self._watch(Note(f"--enqueue: the space does not hold {', '.join(missing)}", True))
        return [position for position in eight.values() if position is not None]

    def _searched(self, space: SearchSpace) -> SearchedSpace:
        own = self._space
        return SearchedSpace(own.study, space, own.workload, own.price, own.demand)

    def _take_over(self, prepared: Prepared) -> History:
        """The records of this study; those of another one first, where asked and not yet done."""
        records = self._directory.trials.read_all()
        if self._request.warm_start is not None and not records:
            for record in self._carried_over(self._request.warm_start, prepared):
                self._directory.trials.write(record)
            taken = len(self._directory.trials.read_all())
            self._watch(Note(f"{taken} trials taken over from {self._request.warm_start}"))
        records = reject_wrong_answers(self._directory.trials, prepared.gated, self._watch)
        return History(records, contradicted_by(self._directory.confirmations.read_all().values()))

    def _carried_over(self, name: str, prepared: Prepared) -> list[TrialRecord]:
        other = StudyDirectory(self._request.results.absolute() / name)
        again = contradicted_by(other.confirmations.read_all().values())
        records = [r for r in other.trials.read_all().values() if r.config not in again]
        return carried_over(records, name, prepared.space, self._space.price, self._space.demand)

    def _strategies(self, space: SearchSpace, history: History) -> Strategies:
        return Strategies(
            space,
            self._space.workload,
            history,
            self._setting,
            search_protocol(self._space, self._further_ms),
            self._request.seed,
        )

    def _open_study(self, space: SearchSpace, strategy: Strategy) -> OptunaStudy:
        return OptunaStudy(
            self._space.study,
            self._directory.journal,
            self._request.storage,
            space,
            strategy.make_sampler,
            self._request.seed,
            objective_names(self._further_ms),
        )

    def _confirm(self, evaluator: LiveEvaluator, history: History, prepared: Prepared) -> Confirmed:
        phase = ConfirmPhase(evaluator, self._directory, self._setting, self._watch)
        space = prepared.space
        # What a resumed study no longer has a model file for cannot be measured again.
        left = {r.number: r for r in history.records if space.position_of(r.config) is not None}
        return phase.run(History(left), space.config(space.baseline))

    def _hand_out(self, confirmed: Confirmed, prepared: Prepared) -> None:
        """best/, and the baseline beside it, with copies of their artefacts."""
        if confirmed.best:
            self._write(self._directory.best, confirmed.best[0].config, prepared)
        else:
            # A winner of an earlier run that no longer holds is none.
            remove_model_repository(self._directory.best)
        baseline = prepared.space.config(prepared.space.baseline)
        self._write(self._directory.baseline, baseline, prepared)

    def _write(self, target: Path, config: ServingConfig, prepared: Prepared) -> None:
        provenance = Provenance(
            origins_in(prepared.space),
            dict(self._machine.packages),
            labels_in(read_source_cards(self._directory)),
        )
        write_model_repository(
            target, self._templates, config, files_of(config, prepared.files), provenance
        )

    def _summarise(
        self,
        started: float,
        ended: SearchEnd,
        history: History,
        confirmed: Confirmed,
        prepared: Prepared,
    ) -> StudySummary:
        runs = LoadRuns.of(self._directory)
        summary = summarise(self._space, ended, history, confirmed, runs, prepared)
        if self._further_ms:
            known = measured_configurations(history.records, runs)
            front = pareto_front(known, self._space.workload, self._setting)
            summary = replace(summary, pareto=front)
        return replace(
            summary,
            wall_seconds=time.monotonic() - started,
            machine=machine_json(self._machine, self._place.slot),
        )
