"""Files that take advice further: a patch of the deployed model, and a space file to search it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from optimizer.commands.init import find_model, write_new, write_space_from
from optimizer.errors import UsageError
from optimizer.export.deployed_space import ObservedTraffic
from optimizer.export.repository_patch import PatchedFile, with_header
from optimizer.production.advice import PERCENTILE, Advice
from optimizer.triton.config_text import edited
from optimizer.triton.counter_intervals import ObservedServing
from optimizer.triton.deployed_config import (
    CONFIG_FILE,
    deployed_values,
    overlay,
    read_deployed,
)
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.model_spec import RepositorySource


def deployed_source(repository: Path, observed: ObservedServing) -> RepositorySource:
    """Return the observed model in a repository on this machine.

    Raises:
        UsageError: where it is not there, or is configured otherwise than what is served.
    """
    folder = repository / observed.model
    source = find_model(folder if folder.is_dir() else repository, "--repository")
    own, served = (
        deployed_values(each) for each in (read_deployed(source.folder)[1], observed.config)
    )
    if own != served:
        differing = ", ".join(
            f"{name} {own[name]}, served with {served[name]}"
            for name in own
            if own[name] != served[name]
        )
        raise UsageError(
            f"--repository: {source.folder / CONFIG_FILE} has {differing}: give the repository as "
            "it is deployed"
        )
    return source


def patch_of(source: RepositorySource, advice: Advice) -> str:
    """Return a patch of the deployed config.pbtxt that makes the best change.

    Raises:
        UsageError: where no change is advised.
    """
    best, check = advice.best, advice.learnt.check
    if not best.changed:
        raise UsageError("--patch: no change serves clearly more, so there is nothing to patch")
    text, base = read_deployed(source.folder)
    config = overlay(base, best.serving)
    config.name = base.name
    low, high = best.capacity_per_second.low, best.capacity_per_second.high
    lines = [
        f"Advice of `python -m optimizer observe` for {source.model}, from counters alone:",
        f"{best.name}.",
        f"Predicted, and not measured: {low:.4g} to {high:.4g} requests/s of one replica within "
        f"{advice.learnt.stream.limit.latency_ms:.4g} ms (p{PERCENTILE:g}, in the server).",
        *(f"Load-test first: {reason}." for reason in best.test_first),
        *(f"Not to be trusted: {reason}." for reason in check.reasons),
        "Apply it in the folder of the repository: patch -p1 < FILE",
    ]
    path = PurePosixPath(source.model) / CONFIG_FILE
    return with_header("\n".join(lines), [PatchedFile(path, text, edited(text, config))])


def write_observed_space(source: RepositorySource, path: Path, advice: Advice) -> Sequence[Path]:
    """Write a space file with what was learnt, and a trace where arrivals are uneven.

    Returns:
        The files.

    Raises:
        UsageError: when a file exists already, or the model cannot be described.
    """
    stream, demand = advice.learnt.stream, advice.learnt.demand
    arrivals, files = demand.arrivals, [path]
    if isinstance(arrivals, ArrivalTrace):
        trace = path.with_name(f"{path.stem}-arrivals.csv")
        write_new(trace, "seconds\n" + "".join(f"{at:.6f}\n" for at in arrivals.at_seconds))
        files.append(trace)
    traffic = ObservedTraffic(
        arrivals if not isinstance(arrivals, ArrivalTrace) else f"{{trace: {files[-1].name}}}",
        stream.batch_size,
        float(f"{demand.peak_per_second:.4g}"),
        float(f"{stream.limit.latency_ms:.4g}"),
        advice.price.instance_type if advice.price is not None else None,
    )
    try:
        write_space_from(source.folder, path, traffic)
    except BaseException:
        for file in files[1:]:
            file.unlink()
        raise
    return files
