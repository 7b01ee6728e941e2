"""A space recorded exhaustively on this machine, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from optimizer.commands.hosts import require_host
from optimizer.commands.parts import (
    RunPlace,
    open_space,
    require_packages,
    require_same_space,
    search_protocol,
    slot_of,
    study_context,
)
from optimizer.commands.with_progress import with_progress
from optimizer.machine.fingerprint import this_machine
from optimizer.search.recorded.recording import RecordingPlan, RecordPhase
from optimizer.search.recorded.table import RecordedSpace
from optimizer.search.recorded.table_file import recorded, write_table
from optimizer.study.directory import RecordingDirectory
from optimizer.study.events import Watcher
from optimizer.study.history import why_all_failed, why_most_unmeasured

_HOW_TO_GO_ON = "go on with what it was begun with, or record under another name: study: NEW"


@dataclass(frozen=True)
class RecordRequest:
    """What one `record` was asked to do.

    Attributes:
        results: folder of the studies; the recording goes to STUDY/recorded below it.
        cache: folder of the artefact cache.
        seed: of the order of the points, the sample and the arrivals.
    """

    space: Path
    results: Path
    cache: Path
    seed: int = 0


@dataclass(frozen=True)
class Recorded:
    """What a recording came to.

    Attributes:
        table: the file that was written.
        unmeasured: why most points could not be measured, or all failed; None where neither holds.
        within_limits: whether any point met the limits at some load.
    """

    table: Path
    unmeasured: str | None
    within_limits: bool


def record_space(request: RecordRequest, watch: Watcher) -> Recorded:
    """Measure every point of a space, from wherever the recording stands.

    Everything that can be known to be missing or wrong is found before anything starts.

    Raises:
        OptimizerError: one of its branches, see `optimizer.errors`.
    """
    space = open_space(request.space)
    slot = slot_of(space)
    server = require_host(space, slot)
    require_packages(space)
    machine = this_machine(server, space.search_space.hardware.gpus)
    directory = RecordingDirectory(request.results.absolute() / space.study / "recorded")
    with directory.locked():
        require_same_space(directory, space, machine, _HOW_TO_GO_ON)
        place = RunPlace(directory, request.cache, slot, space.host)
        setting = study_context(space, slot, machine)
        protocol = search_protocol(space)
        with with_progress(directory, watch) as watch_all, place.session(space) as session:
            place.introduce(machine, watch_all)
            prepared = place.prepare(session, space, watch_all)
            with place.evaluator(session, space, prepared, request.seed, watch_all) as evaluator:
                phase = RecordPhase(
                    prepared.space,
                    space.workload,
                    protocol,
                    evaluator.serve_and_measure,
                    directory,
                    setting,
                    watch_all,
                )
                phase.run(RecordingPlan(prepared.space, request.seed))
        recorded_space = RecordedSpace(
            study=space.study,
            search_space=prepared.space,
            workload=space.workload,
            price=space.price,
            demand=space.demand,
            warmup_seconds=protocol.warmup_seconds,
            machine=machine,
            as_of=datetime.now(UTC).date().isoformat(),
        )
        write_table(directory.table, recorded(recorded_space, directory))
        points = [*directory.trials.read_all().values()]
    within_limits = any(record.outcome == "ok" for record in points)
    unmeasured = why_most_unmeasured(points) or why_all_failed(points)
    return Recorded(directory.table, unmeasured, within_limits)
