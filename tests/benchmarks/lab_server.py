"""Execution of the lab's cases by a real server: its Python model sleeps and logs its batches."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import psutil
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, model_config_pb2
from tritonclient.utils import InferenceServerException

from optimizer.configuration.serving_config import Batching, ServerOptions
from optimizer.load.transmit import is_rejection
from optimizer.machine.slots import local_slot
from optimizer.triton.connections import triton_client
from optimizer.triton.control import Endpoint
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.model_config import to_text, write_queue_policy
from tests.benchmarks.lab_cases import Case, Execution

_MODEL = """
import json, os, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        self.fixed, self.each = (float(given[n]["string_value"]) / 1e3 for n in ("fixed", "each"))
        self.log = os.open(
            given["log"]["string_value"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )
        self.name = args["model_instance_name"]

    def execute(self, requests):
        begin = time.monotonic()
        ids = [pb_utils.get_input_tensor_by_name(r, "ID").as_numpy() for r in requests]
        end = begin + self.fixed + self.each * sum(map(len, ids))
        while (left := end - time.monotonic()) > 0:
            time.sleep(left)
        row = [self.name, begin, time.monotonic(), [int(each[0, 0]) for each in ids]]
        os.write(self.log, (json.dumps(row) + "\\n").encode())
        one = np.zeros((1, 1), np.int64)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.repeat(one, len(each), 0))])
            for each in ids
        ]
"""

_LOAD_SECONDS = 60.0
_REPLY_SECONDS = 30.0
_WARMUP_ID = -1


def config_of(case: Case, log: Path) -> model_config_pb2.ModelConfig:
    """Return the configuration of a case's model."""
    own = case.scheduler
    config = model_config_pb2.ModelConfig(
        name=case.name, backend="python", max_batch_size=own.max_batch_size
    )
    width = -1 if own.free_dimensions else 1
    config.input.add(name="ID", data_type=model_config_pb2.TYPE_INT64, dims=[width])
    config.output.add(name="OUT", data_type=model_config_pb2.TYPE_INT64, dims=[1])
    kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=own.instances)
    if own.dynamic:
        batcher = config.dynamic_batching
        batcher.SetInParent()
        batcher.preferred_batch_size.extend(own.preferred_batch_sizes)
        batcher.max_queue_delay_microseconds = own.max_queue_delay_us
        if own.policy.bounds:
            write_queue_policy(batcher.default_queue_policy, Batching(queue_policy=own.policy))
        if case.priority_levels:
            batcher.priority_levels = case.priority_levels
            batcher.default_priority_level = case.priority_levels
    given = {"fixed": str(case.fixed_ms), "each": str(case.each_ms), "log": str(log)}
    for name, text in given.items():
        config.parameters[name].string_value = text
    return config


@dataclass(frozen=True)
class LabServer:
    """A running server over a repository to which cases are added."""

    endpoint: Endpoint
    repository: Path
    pid: int

    @property
    def address(self) -> str:
        """Of its gRPC endpoint."""
        return self.endpoint.grpc

    @contextmanager
    def loaded(self, case: Case) -> Iterator[Callable[[Case], Execution]]:
        """Load a case's model; what is yielded executes cases of the same configuration."""
        log = self.repository.parent / f"{case.name}.log"
        folder = self.repository / case.name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.py").write_text(_MODEL)
        (folder / "config.pbtxt").write_text(to_text(config_of(case, log)))
        client = triton_client(self.address)
        try:
            client.load_model(case.name, client_timeout=_LOAD_SECONDS)
            for _ in range(case.scheduler.instances):
                # With a delay above the queue timeout, every lone request is rejected.
                with suppress(InferenceServerException):
                    client.infer(case.name, [_input(case, _WARMUP_ID, 0)])
            self._prioritise()
            yield lambda each: _sent(client, each, log)
        finally:
            client.unload_model(case.name)
            client.close()

    def _prioritise(self) -> None:
        """Give the server and its models real-time priority, so that other processes do not delay.

        They sleep nearly all the time. What they start has ordinary priority.
        """
        server = psutil.Process(self.pid)
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                for thread in process.threads():
                    _set_priority(thread.id)


def _set_priority(thread: int) -> None:
    """Give a thread real-time priority where that is permitted, and what it starts none."""
    with suppress(ProcessLookupError, PermissionError):
        os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _input(case: Case, number: int, shape: int) -> InferInput:
    width = 1 + shape if case.scheduler.free_dimensions else 1
    rows = np.full((case.scheduler.request_size, width), number, dtype=np.int64)
    tensor = InferInput("ID", list(rows.shape), "INT64")
    tensor.set_data_from_numpy(rows)
    return tensor


def _sent(client: InferenceServerClient, case: Case, log: Path) -> Execution:
    count = len(case.due_ms)
    inputs = [_input(case, n, int(shape)) for n, shape in enumerate(case.shapes)]
    errors: dict[int, str | None] = {}
    done = np.empty(count)
    over = Event()

    def take(number: int, error: InferenceServerException | None) -> None:
        done[number] = time.monotonic()
        # As the load client writes it: the name of the status, and the message.
        errors[number] = (
            f"{str(error.status()).rpartition('.')[2]}: {error.message()}" if error else None
        )
        if len(errors) == count:
            over.set()

    sent, start = np.empty(count), time.monotonic() + 0.05
    _set_priority(0)
    for number, due in enumerate(case.due_ms.tolist()):
        time.sleep(max(0.0, start + due / 1e3 - time.monotonic()))
        sent[number] = time.monotonic()
        client.async_infer(
            case.name,
            [inputs[number]],
            callback=lambda result, error, n=number: take(n, error),
        )
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if not over.wait(_REPLY_SECONDS):
        raise TimeoutError(f"{case.name}: {count - len(errors)} requests were not answered")
    return _execution(sent, done, start, errors, log)


def _execution(
    sent: NDArray[np.float64],
    done: NDArray[np.float64],
    start: float,
    errors: dict[int, str | None],
    log: Path,
) -> Execution:
    rejected = np.array([_is_rejected(errors[n]) for n in range(len(sent))])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = sorted((row for row in rows if row[1] > start), key=lambda row: row[1])
    begin = np.full(len(sent), np.nan)
    for _, began, _, numbers in rows:
        begin[numbers] = (began - start) * 1e3
    return Execution(
        (sent - start) * 1e3,
        begin,
        rejected,
        np.array([len(row[3]) for row in rows], dtype=np.int64),
        np.array([(row[1] - start) * 1e3 for row in rows]),
        np.array([(row[2] - start) * 1e3 for row in rows]),
        (done - start) * 1e3,
        tuple(row[0] for row in rows),
    )


def _is_rejected(error: str | None) -> bool:
    if error is None:
        return False
    if not is_rejection(error):
        raise RuntimeError(f"a request failed: {error}")
    return True


@contextmanager
def lab_server(folder: Path) -> Iterator[LabServer]:
    """Start a server that keeps its files in `folder`."""
    runtime = find_embedded_runtime()
    repository = folder / "repository"
    launcher = EmbeddedLauncher(
        runtime, runtime.lay_out(folder / "backends"), repository, folder / "server.log"
    )
    server = launcher.start(ServerOptions(), local_slot())
    try:
        assert server.pid is not None
        yield LabServer(server.endpoint, repository, server.pid)
    finally:
        server.stop()
