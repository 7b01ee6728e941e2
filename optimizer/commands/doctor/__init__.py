"""What this machine can run, and what to install for the rest. Nothing is changed or started.

Every part is looked at for itself, all at once; then it is judged, which needs no machine.
"""

from __future__ import annotations

from pathlib import Path

from optimizer.commands.doctor import docker, machine, software
from optimizer.commands.doctor import gpus as graphics
from optimizer.commands.doctor.abilities import MachineFindings, abilities
from optimizer.commands.doctor.checks import Unseen, look
from optimizer.commands.doctor.examination import Area, CheckResult, Examination
from optimizer.triton.embedded import find_embedded_runtime

__all__ = ["examine"]


def examine(cache: Path, results: Path) -> Examination:
    """Look at this machine: half a minute at most, however much of it does not answer.

    Args:
        cache: folder of the artefact cache.
        results: folder of the studies.
    """
    singly = {
        "processor": look(machine.processor),
        "memory": look(machine.memory),
        "Python": look(machine.python),
        machine.SHARED_MEMORY: look(machine.shared_memory),
        "cache": look(lambda: machine.disk("cache", cache)),
        "results": look(lambda: machine.disk("results", results)),
        "perf_analyzer": look(software.second_opinion),
    }
    packages, embedded = look(software.packages), look(find_embedded_runtime)
    cards, on_bus = look(graphics.graphics), look(graphics.cards_on_bus)
    containers = look(docker.docker)
    found = [_finding(part, wait()) for part, wait in singly.items()]
    seen = MachineFindings(packages(), embedded(), cards(), containers())
    return _judge(found, seen, on_bus())


def _finding(part: str, seen: CheckResult | Unseen) -> CheckResult:
    return seen.finding(part) if isinstance(seen, Unseen) else seen


def _judge(found: list[CheckResult], seen: MachineFindings, on_bus: int | Unseen) -> Examination:
    *of_machine, second_opinion = found
    with_gpus = graphics.can_have_gpus(seen.graphics, on_bus)
    installed = software.findings(seen.packages, seen.embedded, seen.docker, with_gpus=with_gpus)
    return Examination(
        areas=(
            Area("This machine", tuple(of_machine)),
            Area("GPUs", graphics.findings(seen.graphics, on_bus)),
            Area("Docker", docker.findings(seen.docker, with_gpus=with_gpus)),
            Area("Installed here", (*installed, second_opinion)),
        ),
        abilities=abilities(seen),
    )
