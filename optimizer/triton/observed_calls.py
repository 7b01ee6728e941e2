"""Which models a model of the Python backend calls (BLS), by its code and by the counters."""

from __future__ import annotations

import ast
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from tritonclient.grpc import model_config_pb2, service_pb2

from optimizer.errors import LoadTestFailure, UsageError
from optimizer.files.untrusted import UnreadableError, read_text
from optimizer.triton.control import ServerControl
from optimizer.triton.deployed_config import (
    backend_of,
    ensemble_steps,
    model_folders,
    read_if_present,
)
from optimizer.workload.model_spec import Call, Calls, RepositorySource
from optimizer.workload.streams import Tensors

_REQUEST = "InferenceRequest("
"""The class of pb_utils of which every request to another model is made."""

_REPLY_SECONDS = 60.0
_COUNTED_SECONDS = 2.0


def code_calls_others(folder: Path) -> bool:
    """Return whether code in one of a model's version folders makes requests to other models."""
    return any(_REQUEST in _text(path) for path in _code(folder))


def calls_in_code(source: RepositorySource) -> Calls | None:
    """Return the calls that the code of a model and of its steps names, in the order of the code.

    Returns:
        None where code that calls others names none of the repository's models.
    """
    models = {each.name for each in model_folders(source.repository)}
    calls: dict[str, tuple[Call, ...]] = {}
    left = [source.model]
    while left:
        name = left.pop()
        folder = source.repository / name
        if name in calls or name not in models:
            continue
        if code_calls_others(folder):
            named = [text for text in _texts_in_code(folder) if text in models - {name}]
            if not named:
                return None
            calls[name] = tuple(map(Call, dict.fromkeys(named)))
        left += [step.model for step in ensemble_steps(read_if_present(folder)[1])]
        left += [call.model for call in calls.get(name, ())]
    return tuple(calls.items())


def _texts_in_code(folder: Path) -> Iterator[str]:
    """Yield the texts in a model's code, in their order."""
    for path in _code(folder):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns about suspicious programs
                nodes = list(ast.walk(ast.parse(_text(path))))
        except (SyntaxError, ValueError, RecursionError):
            continue
        constants = [node for node in nodes if isinstance(node, ast.Constant)]
        for node in sorted(constants, key=lambda node: (node.lineno, node.col_offset)):
            if isinstance(node.value, str):
                yield node.value


def _code(folder: Path) -> list[Path]:
    return [path for version in folder.glob("[1-9]*") for path in sorted(version.glob("*.py"))]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except UnreadableError:
        return ""


def count_calls(
    control: ServerControl, model: str, others: Sequence[str], requests: Sequence[Tensors]
) -> dict[str, float]:
    """Send requests one after the other, and count those that other models get meanwhile.

    Returns:
        By name, the mean number of requests for each one that was sent, without models that got
        none, in the order in which they were asked last.

    Raises:
        LoadTestFailure: where a request is answered with an error.
        ServerFailure: where the server is gone, or the model is not ready or does not answer.
    """
    counts, offsets = dict.fromkeys(others, 0), {name: list[float]() for name in others}
    for request in requests:
        before = {name: _requests(control.statistics(name)) for name in (model, *others)}
        if error := control.error_of_one_request(model, request, _REPLY_SECONDS):
            raise LoadTestFailure(f"{model} did not answer: {control.explained(model, error)}")
        top = _counted(control, model, before[model])
        for name in others:
            now = control.statistics(name)
            if (more := _requests(now) - before[name]) > 0:
                counts[name] += more
                offsets[name].append(now.last_inference - top.last_inference)
    called = sorted((name for name in others if counts[name]), key=lambda n: fmean(offsets[n]))
    return {name: counts[name] / len(requests) for name in called}


def _counted(control: ServerControl, model: str, before: int) -> service_pb2.ModelStatistics:
    """Return a model's counters after a reply, which the server counts shortly after it is sent."""
    end = time.monotonic() + _COUNTED_SECONDS
    while _requests(now := control.statistics(model)) == before and time.monotonic() < end:
        time.sleep(0.005)
    return now


def _requests(counters: service_pb2.ModelStatistics) -> int:
    return int(counters.inference_stats.success.count + counters.inference_stats.fail.count)


def attributed_calls(
    source: RepositorySource,
    configs: Mapping[str, model_config_pb2.ModelConfig],
    counts: Mapping[str, float],
) -> Calls:
    """Return which calls the models of a pipeline have made by their own code.

    Args:
        configs: of the models of the repository, by name.
        counts: what `count_calls` returns of the source.

    Raises:
        UsageError: where more than one model can have made them.
    """
    per_request = {source.model: 1.0, **counts}
    left = dict(counts)
    for name, times in per_request.items():
        for step in ensemble_steps(configs[name]):
            left[step.model] = left.get(step.model, 0.0) - times
    called = {name: count for name, count in left.items() if count > 1e-6}
    python = [name for name in per_request if backend_of(configs[name]) == "python"]
    callers = [name for name in python if code_calls_others(source.step(name).folder)]
    if not callers and source.model in python:
        callers = [source.model]
    if called and len(callers) != 1:
        candidates = f"which of {', '.join(callers)} calls" if callers else "what calls"
        raise UsageError(
            f"source.calls: auto cannot tell {candidates} {', '.join(called)}: state the calls of "
            "each, such as {MODEL: [CALLED, CALLED]}"
        )
    return tuple(
        (caller, tuple(Call(name, count / per_request[caller]) for name, count in called.items()))
        for caller in callers
    )
