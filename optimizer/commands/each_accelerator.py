"""One study for each type of accelerator of a Ray cluster, all at the same time.

Each is run by a process of its own, which ends with this one, as `run` would run it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from optimizer.analysis.comparison import Comparison
from optimizer.cluster.ray_cluster import accelerator_types, connected
from optimizer.commands.compare import CompareOptions, compare_studies
from optimizer.commands.run import run_study
from optimizer.commands.run_options import RunOptions
from optimizer.errors import OptimizerError, RunError, UsageError
from optimizer.fleet.price_list import price_list, usual_prices
from optimizer.machine.child_shim import die_with_parent
from optimizer.space_file.reader import study_with_prices
from optimizer.study.events import Watcher

_END_SECONDS = 30.0


@dataclass(frozen=True)
class EachResult:
    """What became of the studies.

    Attributes:
        studies: names of those that ended.
        errors: why others did not, by name of the study.
        comparison: of those that ended; None for fewer than two.
    """

    studies: tuple[str, ...]
    errors: Mapping[str, OptimizerError]
    comparison: Comparison | None


def run_each_type(options: RunOptions, watch_study: Callable[[str], Watcher]) -> EachResult:
    """Run or resume a study for each type of accelerator that a cluster has, and compare them.

    Args:
        options: of the studies; the type is added to their name.
        watch_study: returns the watcher of a study by its name.

    Raises:
        UsageError: the cluster has no accelerators, or the space file no price for one of them.
    """
    studies = _options_of_each(options)
    errors: dict[str, OptimizerError] = {}
    with _processes(studies) as running:
        names = {connection: name for name, connection in running.items()}
        watchers = {name: watch_study(name) for name in studies}
        while names:
            for connection in wait(list(names)):
                assert isinstance(connection, Connection)
                name = names[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    message = RunError(f"the process of study {name} ended unexpectedly")
                if message is None or isinstance(message, OptimizerError):
                    del names[connection]
                    errors |= {} if message is None else {name: message}
                else:
                    watchers[name](message)
    done = tuple(name for name in studies if name not in errors)
    compared = None
    if len(done) > 1:
        compared = compare_studies(CompareOptions(done, results=options.results))
    return EachResult(done, errors, compared)


def _options_of_each(options: RunOptions) -> dict[str, RunOptions]:
    """Return the options of each study by its name."""
    cluster, space = options.cluster, options.space
    if cluster is None or not isinstance(space, Path):
        raise UsageError("--each-accelerator-type: needs --cluster, and the path of a space file")
    with connected(cluster.address):
        types = accelerator_types(dict(cluster.worker_resources))
    if not types:
        raise UsageError(
            f"--each-accelerator-type: no node at {cluster.address} has an accelerator of a type "
            "that Ray names; leave it out for one study on all nodes"
        )
    name = study_with_prices(space, usual_prices(price_list()), types)
    return {
        f"{options.study or name}-{each}": replace(
            options,
            study=f"{options.study or name}-{each}",
            cluster=replace(cluster, accelerator_type=each),
        )
        for each in types
    }


@contextmanager
def _processes(studies: Mapping[str, RunOptions]) -> Iterator[dict[str, Connection]]:
    """Start a process for each study; yield their connections, and end them in the end."""
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    connections: dict[str, Connection] = {}
    try:
        for name, options in studies.items():
            connections[name], theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(theirs, os.getpid(), options), name=name)
            process.start()
            theirs.close()
            processes.append(process)
        yield connections
    finally:
        _end(processes)
        for connection in connections.values():
            connection.close()


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Have processes end; Ray ends their workers."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _run(connection: Connection, parent_pid: int, options: RunOptions) -> None:
    """Run a study; send its events, and last None or the error that ended it."""
    # Ctrl-C in the terminal is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent_pid, signal.SIGTERM)
    try:
        run_study(options, connection.send)
        connection.send(None)
    except OptimizerError as error:
        connection.send(error)
