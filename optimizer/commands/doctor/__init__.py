"""Check what this machine can run and what to install. Nothing is changed or started.

All parts are checked at the same time; the abilities then follow from the results alone.
"""

from __future__ import annotations

from pathlib import Path

from optimizer.commands.doctor import docker, machine, software
from optimizer.commands.doctor import gpus as graphics
from optimizer.commands.doctor.abilities import MachineFindings, abilities
from optimizer.commands.doctor.checks import Area, CheckResult, Examination, NotChecked, start_check
from optimizer.triton.embedded import find_embedded_runtime

__all__ = ["examine"]


def examine(cache: Path, results: Path) -> Examination:
    """Check this machine, in half a minute at most even where parts do not answer.

    Args:
        cache: folder of the artefact cache.
        results: folder of the studies.
    """
    simple_checks = {
        "processor": start_check(machine.processor),
        "memory": start_check(machine.memory),
        "Python": start_check(machine.python),
        machine.SHARED_MEMORY: start_check(machine.shared_memory),
        "cache": start_check(lambda: machine.disk("cache", cache)),
        "results": start_check(lambda: machine.disk("results", results)),
        "perf_analyzer": start_check(software.second_opinion),
    }
    packages, embedded = start_check(software.packages), start_check(find_embedded_runtime)
    driver, bus = start_check(graphics.graphics), start_check(graphics.cards_on_bus)
    engine = start_check(docker.docker)
    *of_machine, perf_analyzer = [_result(part, wait()) for part, wait in simple_checks.items()]
    findings, on_bus = MachineFindings(packages(), embedded(), driver(), engine()), bus()
    with_gpus = graphics.can_have_gpus(findings.graphics, on_bus)
    installed = software.results(
        findings.packages, findings.embedded, findings.docker, with_gpus=with_gpus
    )
    return Examination(
        areas=(
            Area("This machine", tuple(of_machine)),
            Area("GPUs", graphics.results(findings.graphics, on_bus)),
            Area("Docker", docker.results(findings.docker, with_gpus=with_gpus)),
            Area("Installed here", (*installed, perf_analyzer)),
        ),
        abilities=abilities(findings),
    )


def _result(part: str, outcome: CheckResult | NotChecked) -> CheckResult:
    return outcome.result(part) if isinstance(outcome, NotChecked) else outcome
