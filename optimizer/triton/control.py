"""Control a running server: load and unload models, read configuration and statistics, infer.

Launchers only start and stop servers. Errors of the client library are converted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from types import MappingProxyType

import tritonclient.grpc as triton_grpc
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from optimizer.errors import ConfigMismatch, LoadTestFailure, ServerFailure
from optimizer.measurement.level import ServerSplit
from optimizer.simulator.response_cache import CachedOutput
from optimizer.triton.client_errors import load_failure, message_of, server_errors
from optimizer.triton.connections import triton_client
from optimizer.triton.model_config import differences
from optimizer.triton.reply_errors import explained_error
from optimizer.triton.statistics import server_split
from optimizer.triton.tensors import client_inputs, inferences_of, joined_output
from optimizer.workload.streams import Tensors

_CALL_SECONDS = 10.0
_LONGEST_QUEUE_SECONDS = 60.0
_COUNTED_SECONDS = 2.0
_NO_MODEL = "no model is called so"


RequestedModel = tuple[model_config_pb2.ModelConfig, Sequence[str]]
"""A configuration, and the paths of fields that are compared even where they are false or 0."""


@dataclass(frozen=True)
class Endpoint:
    """Addresses of a server, as host:port."""

    grpc: str
    http: str
    metrics: str

    @property
    def ports(self) -> set[int]:
        """The three ports."""
        return {int(each.rpartition(":")[2]) for each in (self.grpc, self.http, self.metrics)}


class ServerControl:
    """Controls the server at an endpoint; a context manager that closes its connection.

    Attributes:
        loading_seconds: time of all successful load requests so far.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.loading_seconds = 0.0
        self._client = triton_client(endpoint.grpc)
        self._loaded: dict[str, None] = {}
        self._last_error = ""
        self._ever_loaded: set[str] = set()
        self._versions: dict[str, str] = {}

    def __enter__(self) -> ServerControl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Return whether the server answers and is ready."""
        return self._answers(self._client.is_server_ready)

    def alive(self) -> bool:
        """Return whether the server answers, whatever the state of its models."""
        return self._answers(self._client.is_server_live)

    def _answers(self, ask: Callable[..., object]) -> bool:
        try:
            return bool(ask(client_timeout=1.0))
        except InferenceServerException as error:
            self._last_error = message_of(error)
            return False

    @property
    def last_error_text(self) -> str:
        """End of a message about an unreachable server: the last error, if any."""
        return f"; the last error: {self._last_error}" if self._last_error else ""

    def in_explicit_mode(self) -> bool:
        """Return whether the server is in explicit model-control mode."""
        try:
            # The API does not tell the mode, but only explicit mode accepts to unload a model, and
            # it does so for an unknown one.
            self._client.unload_model(_NO_MODEL, client_timeout=_CALL_SECONDS)
        except InferenceServerException:
            return False
        return True

    @property
    def loaded(self) -> tuple[str, ...]:
        """Models that `load` was called for and that are not yet unloaded, failed ones included."""
        return tuple(self._loaded)

    def load(
        self,
        model: str,
        requested: model_config_pb2.ModelConfig,
        timeout_seconds: float,
        *,
        paths: Iterable[str] = (),
        version: str = "",
        steps: Mapping[str, RequestedModel] = MappingProxyType({}),
    ) -> model_config_pb2.ModelConfig:
        """Load or reload a model, and compare the server's configuration with the requested one.

        The configuration is sent with the request, since a server on a network file system may
        read an old config.pbtxt.

        Args:
            paths: of fields that are compared even where they are false, 0 or empty.
            version: that requests and counters are for; empty for the newest that is served.
            steps: by name, the models that an ensemble is composed of. Triton loads these with the
                ensemble, even those that are loaded already.

        Returns:
            The configuration that the server runs.

        Raises:
            ModelLoadFailure: the server refused or failed, or took longer than the timeout (it
                never reports a Python model whose process cannot start).
            ConfigMismatch: the server runs another configuration.
            ServerFailure: the server is gone.
        """
        self._versions[model] = version
        for name in steps:
            self._loaded[name] = None
            self._ever_loaded.add(name)
        config = json_format.MessageToJson(requested, preserving_proto_field_name=True)
        running = self._load(model, config, timeout_seconds)
        for name, (wanted, own_paths) in steps.items():
            _require(name, wanted, self.config(name), own_paths)
        _require(model, requested, running, paths)
        return running

    def load_as_it_is(self, model: str, timeout_seconds: float) -> model_config_pb2.ModelConfig:
        """Load a model with the config.pbtxt in the server's repository, if it has one.

        Returns:
            The configuration that the server runs, which it has completed if it does so at all.

        Raises:
            ModelLoadFailure: the server refused or failed, or took longer than the timeout.
            ServerFailure: the server is gone.
        """
        return self._load(model, None, timeout_seconds)

    def _load(
        self, model: str, config: str | None, timeout_seconds: float
    ) -> model_config_pb2.ModelConfig:
        self._loaded[model] = None
        self._ever_loaded.add(model)
        started = time.monotonic()
        try:
            self._client.load_model(model, config=config, client_timeout=timeout_seconds)
            self.loading_seconds += time.monotonic() - started
        except InferenceServerException as error:
            raise load_failure(model, error, timeout_seconds) from error
        return self.config(model)

    def version_of(self, model: str) -> str:
        """Return the version of a model that requests name; empty for the newest."""
        return self._versions.get(model, "")

    def unload(self, model: str, wait_seconds: float = 0.0) -> None:
        """Unload a model, and wait up to `wait_seconds` until it is gone."""
        with server_errors(f"unload {model}"):
            self._client.unload_model(model, client_timeout=_CALL_SECONDS)
        self._loaded.pop(model, None)
        self._wait_until_gone({model}, wait_seconds)

    def unload_all(self, wait_seconds: float) -> None:
        """Unload all models, the last one first, and wait up to `wait_seconds` until all are gone.

        A model's processes take over a second to end, all at the same time.
        """
        for model in reversed(self.loaded):
            self.unload(model)
        self._wait_until_gone(self._ever_loaded, wait_seconds)

    def _wait_until_gone(self, models: set[str], wait_seconds: float) -> None:
        end = time.monotonic() + wait_seconds
        while time.monotonic() < end and models & {*self.models_present()}:
            time.sleep(0.02)

    def models_present(self) -> tuple[str, ...]:
        """Return the models that are loaded, loading or unloading."""
        with server_errors("list models"):
            index = self._client.get_model_repository_index(client_timeout=_CALL_SECONDS)
        return tuple(m.name for m in index.models if m.state in ("READY", "LOADING", "UNLOADING"))

    def version(self) -> str:
        """Return Triton's version. Raises ServerFailure."""
        with server_errors("read the server's version"):
            answer = self._client.get_server_metadata(client_timeout=_CALL_SECONDS)
        return str(answer.version)

    def config(self, model: str) -> model_config_pb2.ModelConfig:
        """Return the configuration that the server runs. Raises ServerFailure."""
        with server_errors(f"read the configuration of {model}"):
            answer = self._client.get_model_config(model, client_timeout=_CALL_SECONDS)
        return answer.config

    def statistics(self, model: str) -> service_pb2.ModelStatistics:
        """Return the server's counters of a model's version since it was loaded.

        Raises:
            ServerFailure: the server is gone, or the model is not loaded.
        """
        with server_errors(f"read the statistics of {model}"):
            answer = self._client.get_inference_statistics(
                model, model_version=self.version_of(model), client_timeout=_CALL_SECONDS
            )
        # Without a version there is a row for each, and requests go to the newest.
        return max(answer.model_stats, key=lambda row: int(row.version))

    def error_of_one_request(self, model: str, tensors: Tensors, seconds: float) -> str | None:
        """Send one request and return the error of its reply, None where it succeeds.

        While the model executes other requests first, the reply is awaited for up to a minute.

        Args:
            seconds: longest time without any execution.

        Raises:
            ServerFailure: the server is gone, or the model is not ready or executes nothing.
        """
        with server_errors(f"check whether {model} is ready"):
            version = self.version_of(model)
            if not self._client.is_model_ready(
                model, model_version=version, client_timeout=_CALL_SECONDS
            ):
                raise ServerFailure(f"the server reports that {model} is not ready")
        replies = SimpleQueue[InferenceServerException | None]()
        executed, end = self._executed(model), time.monotonic() + _LONGEST_QUEUE_SECONDS
        self._client.async_infer(
            model,
            client_inputs(tensors),
            callback=lambda result, error: replies.put(error),
            model_version=version,
            client_timeout=2 * _LONGEST_QUEUE_SECONDS,
        )
        while time.monotonic() < end:
            with suppress(Empty):
                error = replies.get(timeout=seconds)
                return None if error is None else message_of(error)
            before, executed = executed, self._executed(model)
            if executed == before:
                raise ServerFailure(
                    f"{model} executed nothing and did not answer for {seconds:g} s"
                )
        return None

    def explained(self, model: str, error: str) -> str:
        """Return the error of a reply, without traceback, with the step of `model` that failed."""
        groups = ((n, group.name) for n in self._loaded for group in self.config(n).instance_group)
        with suppress(ServerFailure):
            return explained_error(error, model, groups)
        return error

    def outputs_of_one_request(
        self, model: str, tensors: Tensors, timeout_seconds: float
    ) -> tuple[CachedOutput, ...]:
        """Send one request and return what its response consists of. Raises ServerFailure."""
        with server_errors(f"send {model} a request"):
            response = self._client.infer(
                model,
                client_inputs(tensors),
                model_version=self.version_of(model),
                client_timeout=timeout_seconds,
            ).get_response()
        return tuple(
            CachedOutput(output.name, output.datatype, len(output.shape), len(content))
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        )

    def _executed(self, model: str) -> int:
        """Return the number of executions and failures so far."""
        counters = self.statistics(model)
        return int(counters.execution_count + counters.inference_stats.fail.count)

    def executed_since(self, before: service_pb2.ModelStatistics, inferences: int) -> ServerSplit:
        """Return what a model executed since a reading of its statistics.

        The server counts an execution shortly after its reply, so up to two seconds are allowed
        until `inferences` are counted.
        """
        end = time.monotonic() + _COUNTED_SECONDS
        while True:
            split = server_split(before, self.statistics(before.name))
            if split.inferences >= inferences or time.monotonic() >= end:
                return split
            time.sleep(0.005)

    def register_shared_memory(self, name: str, key: str, size_bytes: int) -> None:
        """Register a system shared-memory region with the server. Raises ServerFailure."""
        with server_errors(f"register the shared memory {key}"):
            self._client.register_system_shared_memory(
                name, key, size_bytes, client_timeout=_CALL_SECONDS
            )

    def unregister_shared_memory(self, name: str) -> None:
        """Unregister a region; errors of a server that is gone are ignored."""
        with suppress(InferenceServerException):
            self._client.unregister_system_shared_memory(name, client_timeout=_CALL_SECONDS)

    def infer(
        self,
        model: str,
        requests: Sequence[Tensors],
        outputs: Sequence[str],
        timeout_seconds: float,
        *,
        batched: bool = True,
    ) -> Tensors:
        """Send requests together, so that the server may batch them, and return their outputs.

        Args:
            outputs: names of the outputs to return.
            batched: whether the first axis of inputs and outputs is the batch.

        Returns:
            By name, shape [inferences, ...], in the order of the requests; an array of arrays where
            requests of several shapes, or those of a model without a batch axis, have answers of
            several shapes. BF16 becomes float32.

        Raises:
            LoadTestFailure: when a request fails or gets no reply in time.
            ConfigMismatch: when an output does not have one row per inference of its request.
        """
        replies = self._replies(model, requests, timeout_seconds)
        results = [reply for reply in replies if isinstance(reply, triton_grpc.InferResult)]
        if len(results) < len(replies):
            errors = [reply for reply in replies if isinstance(reply, Exception)]
            reason = self.explained(model, message_of(errors[0])) if errors else "no reply in time"
            raise LoadTestFailure(f"{model} did not answer: {reason}")
        sizes = [inferences_of(request) if batched else None for request in requests]
        shapes = {tuple(array.shape for array in request.values()) for request in requests}
        return {
            name: joined_output(name, results, sizes, one_shape=len(shapes) == 1)
            for name in outputs
        }

    def _replies(
        self, model: str, requests: Sequence[Tensors], timeout_seconds: float
    ) -> list[object]:
        """Send requests together; return the reply or the error of each, None without either."""
        replies: list[object] = [None] * len(requests)

        def keep(index: int, result: object, error: object) -> None:
            replies[index] = error if error is not None else result

        for index, tensors in enumerate(requests):
            self._client.async_infer(
                model,
                client_inputs(tensors),
                callback=partial(keep, index),
                model_version=self.version_of(model),
                client_timeout=timeout_seconds,
            )
        end = time.monotonic() + timeout_seconds + 1.0
        while any(reply is None for reply in replies) and time.monotonic() < end:
            time.sleep(0.002)
        return replies


def _require(
    model: str,
    requested: model_config_pb2.ModelConfig,
    running: model_config_pb2.ModelConfig,
    paths: Iterable[str],
) -> None:
    """Compare what the server runs with what was requested. Raises ConfigMismatch."""
    wrong = differences(requested, running, paths)
    if wrong:
        raise ConfigMismatch(f"{model}: " + "; ".join(wrong))
