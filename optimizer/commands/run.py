"""A study from the space file to its summary."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from optimizer.analysis.summary import StudySummary, SummaryEntry
from optimizer.commands.finished_study import finished_summary
from optimizer.commands.packages import require_packages
from optimizer.commands.run_context import RunContext, open_run
from optimizer.commands.run_options import RunOptions, require_consistent, with_options
from optimizer.commands.run_time import RunTime
from optimizer.commands.study_run import StudyRun
from optimizer.commands.trial_site import TrialSite, open_site
from optimizer.errors import UsageError
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import Slot
from optimizer.search.lent_calibration import lend, lending_study
from optimizer.search.samplers import SAMPLER_PACKAGES
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher, to_all
from optimizer.study.files import read_start
from optimizer.study.notification import NotificationTarget, notifying, target_of
from optimizer.study.warm_start import blocking_differences, differences

_REMEDY = (
    "restore it, or start another study that reuses the still-valid results: "
    "--study NEW --warm-start {}"
)


@dataclass(frozen=True)
class RunResult:
    """The summary of a study, and whether an earlier run had finished it."""

    directory: StudyDirectory
    summary: StudySummary
    was_finished: bool


@one_blas_thread()
def run_study(options: RunOptions, watch: Watcher, spent_seconds: float = 0.0) -> RunResult:
    """Start or resume a study, and run it to its end.

    Args:
        spent_seconds: time of the run that has passed already.
    """
    started = time.monotonic() - spent_seconds
    percent = options.max_disturbance_percent
    target = target_of(options.notify) if options.notify is not None else None
    if options.cluster is not None and options.wait_for_quiet_seconds is not None:
        raise UsageError("--wait-for-quiet: must be left out with --cluster; it is for one machine")
    with open_site(watch, options.cluster, options.gpus, options.slots, percent) as site:
        return _run_at(site, options, watch, started, target)


def _run_at(
    site: TrialSite,
    options: RunOptions,
    watch: Watcher,
    started: float,
    target: NotificationTarget | None,
) -> RunResult:
    space = with_options(site.read_space(options.space), options, started)
    require_consistent(options, space)
    lender = None
    if options.prior is not None:
        sampler = options.chosen_sampler
        lender = lending_study(options.results, options.prior, sampler, space.content)
    directory = StudyDirectory(options.results.absolute() / space.study)

    def require(own: Space) -> tuple[Slot, Machine]:
        slot, machine = site.require_machine(own, directory)
        require_packages(own, SAMPLER_PACKAGES[options.chosen_sampler])
        if options.warm_start is not None and not directory.trials:
            _require_reusable(options.results, options.warm_start, own, machine)
        return slot, machine

    with open_run(
        space,
        directory,
        options.cache,
        _REMEDY.format(directory.name),
        seed=options.seed,
        extra_limits_ms=options.extra_limits_ms,
        require=require,
        watch=watch,
    ) as opened:
        run_time = RunTime(space.budget.wall_clock_seconds, started)
        context = replace(
            opened,
            slots=site.slots,
            wait_for_quiet_seconds=run_time.at_most(options.wait_for_quiet_seconds),
        )
        if lender is not None:
            lend(lender, directory)
        summary = finished_summary(
            directory, space.budget, options.chosen_sampler, options.winner_tests
        )
        if summary is not None:
            return RunResult(directory, summary, was_finished=True)
        summary = _run_phases(site, options, context, run_time, watch, target)
        return RunResult(directory, summary, was_finished=False)


def _run_phases(
    site: TrialSite,
    options: RunOptions,
    context: RunContext,
    run_time: RunTime,
    watch: Watcher,
    target: NotificationTarget | None,
) -> StudySummary:
    """Run what is left of a study, and send a notification of its end."""
    directory = context.directory
    earlier = directory.trials.read_to_keep()
    with (
        context.watched(watch, earlier) as watch_all,
        notifying(target, directory.name, directory.root, watch_all) as (notifier, send),
    ):
        note = site.note(context.space)
        if note is not None:
            watch_all(note)
        watch_and_notify = to_all(watch_all, notifier)
        study = StudyRun(options, context, site, watch_and_notify, earlier, run_time)
        summary = study.run()
        if summary.best is not None:
            send("finished", f"{summary.ended}; best: {_best_text(summary.best)}")
        elif summary.nothing_found is not None:
            send("nothing_confirmed", summary.nothing_found.reason)
        return summary


def _best_text(best: SummaryEntry) -> str:
    return (
        f"{best.description}: {best.capacity_per_second:.0f}/s, "
        f"${best.usd_per_million_at_capacity:.4f} per million"
    )


def _require_reusable(results: Path, name: str, space: Space, machine: Machine) -> None:
    """Check that measurements of another study would come out the same here."""
    other = StudyDirectory(results.absolute() / name)
    if not other.space.exists():
        raise UsageError(f"--warm-start: study {name!r} not found in {results}")
    started = read_start(other)
    machines = started.machine.to_json(), machine.to_json()
    blocking = [
        *blocking_differences(started.content, space.content),
        *(text for _, text in differences(*machines, ("machine",))),
    ]
    if blocking:
        lines = "\n".join(f"  {text}" for text in blocking)
        raise UsageError(f"--warm-start: no measurement of study {name} is valid here:\n{lines}")
