"""Record every configuration of a space on this machine into a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optimizer.commands.protocols import search_protocol
from optimizer.commands.run_context import open_run, open_space
from optimizer.search.recorded.recording import RecordingPlan, RecordPhase
from optimizer.search.recorded.table import RecordedSpace
from optimizer.search.recorded.table_file import recorded, write_table
from optimizer.study.directory import RecordingDirectory
from optimizer.study.events import Watcher
from optimizer.study.history import why_all_failed, why_most_unmeasured

_REMEDY = "restore it, or record under another name: study: NEW"


@dataclass(frozen=True)
class RecordOptions:
    """Options of `record`.

    Attributes:
        seed: of the order of the points, the sample and the arrivals.
        results: the recording is written to STUDY/recorded below it.
    """

    space: Path
    seed: int = 0
    results: Path = Path("results")
    cache: Path | str | None = None


@dataclass(frozen=True)
class RecordResult:
    """The result of a recording.

    Attributes:
        table: the CSV file.
        unmeasured: why most points could not be measured, or all failed; None where neither is so.
        within_limits: whether any point met the limits at some load.
    """

    table: Path
    unmeasured: str | None
    within_limits: bool


def record_space(options: RecordOptions, watch: Watcher) -> RecordResult:
    """Measure every point of a space, or resume a recording that was interrupted."""
    space = open_space(options.space)
    directory = RecordingDirectory(options.results.absolute() / space.study / "recorded")
    protocol = search_protocol(space)
    with open_run(
        space, directory, options.cache, _REMEDY, seed=options.seed, watch=watch
    ) as context:
        with (
            context.watched(watch) as watch_all,
            context.evaluator(watch_all) as (evaluator, prepared),
        ):
            phase = RecordPhase(
                prepared.space,
                space.workload,
                protocol,
                evaluator.serve_and_measure,
                directory,
                context.study_context,
                watch_all,
            )
            phase.run(RecordingPlan(prepared.space, options.seed))
        recorded_space = RecordedSpace(
            study=space.study,
            search_space=prepared.space,
            workload=prepared.as_served(space.workload),
            price=space.price,
            demand=space.demand,
            warmup_seconds=protocol.warmup_seconds,
            machine=context.machine,
            as_of=datetime.now(UTC).date().isoformat(),
        )
        write_table(directory.table, recorded(recorded_space, directory))
        points = [*directory.trials.read_all().values()]
    within_limits = any(record.outcome == "ok" for record in points)
    unmeasured = why_most_unmeasured(points) or why_all_failed(points)
    return RecordResult(directory.table, unmeasured, within_limits)
