"""The one client that controls a running server: load, unload, configuration, statistics, answers.

A launcher only starts and stops; everything that is asked of a running server is asked here, the
same way for every launcher. Errors of the client library end here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import numpy as np
import tritonclient.grpc as triton_grpc
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from optimizer.errors import ConfigMismatch, LoadTestFailure, ModelLoadFailure, ServerFailure
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.triton.connections import triton_client
from optimizer.triton.model_config import differences
from optimizer.workload.streams import Tensors

_CALL_SECONDS = 10.0
_LONGEST_QUEUE_SECONDS = 60.0
_COUNTED_SECONDS = 2.0
_NO_MODEL = "no model is called so"


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, as host:port."""

    grpc: str
    http: str
    metrics: str


class ServerControl:
    """Controls the server at an endpoint; a context manager that closes its connection."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._client = triton_client(endpoint.grpc)
        self._loaded: dict[str, None] = {}
        self._no_answer = ""
        self._seen: set[str] = set()

    def __enter__(self) -> ServerControl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers and is ready."""
        return self._answers(self._client.is_server_ready)

    def alive(self) -> bool:
        """Whether the server answers, whatever its models do."""
        return self._answers(self._client.is_server_live)

    def _answers(self, ask: Callable[..., object]) -> bool:
        try:
            return bool(ask(client_timeout=1.0))
        except InferenceServerException as error:
            self._no_answer = _message(error)
            return False

    @property
    def last_error_text(self) -> str:
        """The end of a message that the server is not reached: the last error, if there was one."""
        return f"; the last error: {self._no_answer}" if self._no_answer else ""

    def in_explicit_mode(self) -> bool:
        """Whether the server is in explicit model-control mode."""
        try:
            # It says nothing of its mode, and in this one alone may a model be unloaded, even one
            # that it does not know.
            self._client.unload_model(_NO_MODEL, client_timeout=_CALL_SECONDS)
        except InferenceServerException:
            return False
        return True

    @property
    def loaded(self) -> tuple[str, ...]:
        """Models that were asked for here and not yet unloaded, those that failed among them."""
        return tuple(self._loaded)

    def load(
        self, model: str, asked: model_config_pb2.ModelConfig, timeout_seconds: float
    ) -> model_config_pb2.ModelConfig:
        """Load a model, or load it anew, and hold what runs against what was asked.

        The configuration goes with the request: a server reads files of its own when it likes, and
        over a network it may see old ones. That of the repository's config.pbtxt gives the same.

        Returns:
            The configuration that the server runs.

        Raises:
            ModelLoadFailure: refused, failed, or not done in time (a Python model whose process
                cannot start is never reported by Triton).
            ConfigMismatch: the server runs something else.
            ServerFailure: the server is gone.
        """
        self._loaded[model] = None
        self._seen.add(model)
        config = json_format.MessageToJson(asked, preserving_proto_field_name=True)
        try:
            self._client.load_model(model, config=config, client_timeout=timeout_seconds)
        except InferenceServerException as error:
            raise _load_failure(model, error, timeout_seconds) from error
        running = self.config(model)
        wrong = differences(asked, running)
        if wrong:
            raise ConfigMismatch(f"{model}: " + "; ".join(wrong))
        return running

    def unload(self, model: str, wait_seconds: float = 0.0) -> None:
        """Unload a model; with `wait_seconds`, return when it is gone or the time is up."""
        with _server_errors(f"unload {model}"):
            self._client.unload_model(model, client_timeout=_CALL_SECONDS)
        self._loaded.pop(model, None)
        self._wait_until_gone({model}, wait_seconds)

    def unload_all(self, wait_seconds: float) -> None:
        """Unload what is `loaded`, and wait for it and for what was unloaded before."""
        for model in self.loaded:
            self.unload(model)
        self._wait_until_gone(self._seen, wait_seconds)

    def _wait_until_gone(self, models: set[str], wait_seconds: float) -> None:
        end = time.monotonic() + wait_seconds
        while time.monotonic() < end and models & {*self.models_present()}:
            time.sleep(0.02)

    def models_present(self) -> tuple[str, ...]:
        """Models that are loaded, loading or not yet gone."""
        with _server_errors("list models"):
            index = self._client.get_model_repository_index(client_timeout=_CALL_SECONDS)
        return tuple(m.name for m in index.models if m.state in ("READY", "LOADING", "UNLOADING"))

    def version(self) -> str:
        """Triton's version, as the server gives it. Raises ServerFailure."""
        with _server_errors("read the server's version"):
            answer = self._client.get_server_metadata(client_timeout=_CALL_SECONDS)
        return str(answer.version)

    def config(self, model: str) -> model_config_pb2.ModelConfig:
        """The configuration that the server runs."""
        with _server_errors(f"read the configuration of {model}"):
            answer = self._client.get_model_config(model, client_timeout=_CALL_SECONDS)
        return answer.config

    def statistics(self, model: str) -> service_pb2.ModelStatistics:
        """The server's counters of a model, summed since it was loaded."""
        with _server_errors(f"read the statistics of {model}"):
            answer = self._client.get_inference_statistics(model, client_timeout=_CALL_SECONDS)
        return answer.model_stats[0]

    def error_of_one_request(self, model: str, tensors: Tensors, seconds: float) -> str | None:
        """Send a model one request and wait for its reply.

        A model that has other requests to execute first is waited for while it does, but not for
        longer than a minute.

        Returns:
            The error that it replied, None where it replied none.

        Raises:
            ServerFailure: the server is gone, or the model is not ready or executed nothing for so
                many seconds.
        """
        with _server_errors(f"see whether {model} is ready"):
            if not self._client.is_model_ready(model, client_timeout=_CALL_SECONDS):
                raise ServerFailure(f"the server says that {model} is not ready")
        replies = SimpleQueue[InferenceServerException | None]()
        executed, end = self._executed(model), time.monotonic() + _LONGEST_QUEUE_SECONDS
        self._client.async_infer(
            model,
            _inputs(tensors),
            callback=lambda result, error: replies.put(error),
            client_timeout=2 * _LONGEST_QUEUE_SECONDS,
        )
        while time.monotonic() < end:
            with suppress(Empty):
                error = replies.get(timeout=seconds)
                return None if error is None else _message(error)
            before, executed = executed, self._executed(model)
            if executed == before:
                raise ServerFailure(
                    f"{model} executed nothing and did not answer for {seconds:g} s"
                )
        return None

    def _executed(self, model: str) -> int:
        """Return how many executions and failures the server has counted."""
        counted = self.statistics(model)
        return int(counted.execution_count + counted.inference_stats.fail.count)

    def executed_since(self, before: service_pb2.ModelStatistics, inferences: int) -> ServerSplit:
        """Return what a model executed since a reading, once so many inferences are counted.

        The server counts an execution a moment after it has answered; a count that does not come
        is not waited for.
        """
        end = time.monotonic() + _COUNTED_SECONDS
        while True:
            split = server_split(before, self.statistics(before.name))
            if split.inferences >= inferences or time.monotonic() >= end:
                return split
            time.sleep(0.005)

    def register_shared_memory(self, name: str, key: str, size_bytes: int) -> None:
        """Make a system shared-memory region known to the server. Raises ServerFailure."""
        with _server_errors(f"register the shared memory {key}"):
            self._client.register_system_shared_memory(
                name, key, size_bytes, client_timeout=_CALL_SECONDS
            )

    def unregister_shared_memory(self, name: str) -> None:
        """Have the server forget a region; a server that is gone has."""
        with suppress(InferenceServerException):
            self._client.unregister_system_shared_memory(name, client_timeout=_CALL_SECONDS)

    def infer(
        self, model: str, requests: Sequence[Tensors], output: str, timeout_seconds: float
    ) -> NDArray[np.float64]:
        """Answers to requests that are sent together, so that the server may batch them.

        Returns:
            Shape [inferences, ...]: the output of each, in their order.

        Raises:
            LoadTestFailure: when a request is not answered.
            ConfigMismatch: when answers do not have one row for each inference of their request.
        """
        answers: list[object] = [None] * len(requests)

        def keep(at: int, result: object, error: object) -> None:
            answers[at] = error if error is not None else result

        for at, tensors in enumerate(requests):
            self._client.async_infer(
                model,
                _inputs(tensors),
                callback=partial(keep, at),
                client_timeout=timeout_seconds,
            )
        end = time.monotonic() + timeout_seconds + 1.0
        while any(answer is None for answer in answers) and time.monotonic() < end:
            time.sleep(0.002)
        results = [answer for answer in answers if isinstance(answer, triton_grpc.InferResult)]
        if len(results) < len(answers):
            errors = [_reason(answer) for answer in answers if isinstance(answer, Exception)]
            raise LoadTestFailure(f"{model} did not answer: {(errors or ['no reply in time'])[0]}")
        return _joined(results, requests, output)


def _reason(error: Exception) -> str:
    """Return what a request failed with: what the model says of it, less its traceback."""
    text = _message(error) if isinstance(error, InferenceServerException) else str(error)
    _, _, own = text.partition(", message: ")
    return (own or text).partition(" At: ")[0]


def _joined(
    results: Sequence[triton_grpc.InferResult], requests: Sequence[Tensors], output: str
) -> NDArray[np.float64]:
    answers = [np.asarray(result.as_numpy(output)) for result in results]
    for answer, request in zip(answers, requests, strict=True):
        batch = len(next(iter(request.values())))
        if answer.shape[:1] != (batch,) or answer.shape[1:] != answers[0].shape[1:]:
            raise ConfigMismatch(
                f"output {output!r} has no row per request: "
                f"a batch of {batch} gives the shape {list(answer.shape)}"
            )
    joined: NDArray[np.float64] = np.concatenate(answers)
    return joined.astype(np.float64)


def _inputs(tensors: Tensors) -> list[triton_grpc.InferInput]:
    inputs = []
    for name, array in tensors.items():
        item = triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        item.set_data_from_numpy(array)
        inputs.append(item)
    return inputs


def server_split(
    before: service_pb2.ModelStatistics, after: service_pb2.ModelStatistics
) -> ServerSplit:
    """What the server's counters say of the requests between two readings."""
    requests = after.inference_stats.success.count - before.inference_stats.success.count

    def mean_ms(part: str) -> float:
        nanoseconds = (
            getattr(after.inference_stats, part).ns - getattr(before.inference_stats, part).ns
        )
        return float(nanoseconds / 1e6 / max(requests, 1))

    earlier = {b.batch_size: b.compute_infer for b in before.batch_stats}
    points = []
    for batch in after.batch_stats:
        known = earlier.get(batch.batch_size)
        count = batch.compute_infer.count - (known.count if known is not None else 0)
        spent = batch.compute_infer.ns - (known.ns if known is not None else 0)
        if count > 0:
            points.append(BatchPoint(int(batch.batch_size), int(count), spent / 1e6 / count))
    return ServerSplit(
        model=after.name,
        requests=int(requests),
        queue_ms=mean_ms("queue"),
        compute_input_ms=mean_ms("compute_input"),
        compute_infer_ms=mean_ms("compute_infer"),
        compute_output_ms=mean_ms("compute_output"),
        batches=tuple(sorted(points, key=lambda point: point.batch_size)),
    )


@contextmanager
def _server_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        raise ServerFailure(f"cannot {doing}: {_message(error)}") from error


def _load_failure(
    model: str, error: InferenceServerException, timeout_seconds: float
) -> ModelLoadFailure | ServerFailure:
    status = str(error.status() or "")
    if "UNAVAILABLE" in status:
        return ServerFailure(f"the server went away while it loaded {model}: {_message(error)}")
    if "DEADLINE_EXCEEDED" in status:
        return ModelLoadFailure(
            f"{model} was not loaded within {timeout_seconds:g} s", transient=True
        )
    return ModelLoadFailure(f"the server could not load {model}: {_message(error)}")


def _message(error: InferenceServerException) -> str:
    return " ".join(str(error.message()).split())
