"""Simulation of a network of batchers.

`network` says what a network consists of, and `network_kernel` runs it, compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.batcher import (
    Draws,
    Simulation,
    closed_loop,
    open_loop,
    rows_of,
    rules_of,
    simulation_of,
    steps_of,
)
from optimizer.simulator.network import Network, NetworkDraws
from optimizer.simulator.network_layout import (
    CALL,
    JOB,
    NODE,
    PROGRESS,
    REQUEST,
    RUN,
)


@dataclass(frozen=True)
class NetworkSimulation:
    """Every request of a simulation; times in ms since the start.

    Attributes:
        source: shape [requests], as the next three.
        arrive_ms: when the request reaches the server.
        done_ms: when it is answered.
        refused: whether a batcher refused it.
        batchers: requests and executions of each batcher.
    """

    source: NDArray[np.int64]
    arrive_ms: NDArray[np.float64]
    done_ms: NDArray[np.float64]
    refused: NDArray[np.bool_]
    batchers: tuple[Simulation, ...]
    outside_ms: float

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Latency at the client of every request, refused ones included; shape [requests]."""
        return self.done_ms - self.arrive_ms + self.outside_ms


def network_open_loop(
    network: Network, arrive_ms: NDArray[np.float64], draws: NetworkDraws
) -> NetworkSimulation:
    """Simulate requests that arrive at given times, ascending, shape [requests].

    Raises:
        ValueError: when scheduler, curve and request size of a batcher do not fit together.
    """
    if network.single:
        [own] = network.batchers
        alone = open_loop(own.scheduler, own.curve, arrive_ms, _draws_of_one(draws))
        return _simulation_of_one(alone, network, draws)
    requests = _requests(network, draws)
    requests["arrive"] = arrive_ms
    return _simulate(network, requests, draws, arrivals=len(arrive_ms))


def network_closed_loop(
    network: Network, concurrency: int, draws: NetworkDraws
) -> NetworkSimulation:
    """Simulate clients that keep `concurrency` requests outstanding until all are sent.

    All clients begin at once, and each sends the next request of any source on a reply.

    Raises:
        ValueError: when scheduler, curve and request size of a batcher do not fit together.
    """
    if network.single:
        [own] = network.batchers
        alone = closed_loop(own.scheduler, own.curve, concurrency, _draws_of_one(draws))
        return _simulation_of_one(alone, network, draws)
    requests = _requests(network, draws)
    return _simulate(network, requests, draws, arrivals=min(concurrency, len(requests)))


def _draws_of_one(draws: NetworkDraws) -> Draws:
    factors = np.ones(int(draws.shape.max(initial=0)) + 1)
    factors[draws.shape] = draws.factor
    return Draws(draws.noise[0], draws.shape, factors)


def _simulation_of_one(
    alone: Simulation, network: Network, draws: NetworkDraws
) -> NetworkSimulation:
    times = (alone.arrive_ms, alone.done_ms, alone.refused)
    return NetworkSimulation(draws.source, *times, (alone,), network.outside_ms)


def _requests(network: Network, draws: NetworkDraws) -> NDArray[np.void]:
    requests = np.zeros(len(draws.source), dtype=REQUEST)
    # The last program makes no calls.
    requests["program"] = np.where(draws.hit, len(network.programs), draws.source)
    for name in ("shape", "factor", "chance"):
        requests[name] = getattr(draws, name)
    return requests


def _simulate(
    network: Network, requests: NDArray[np.void], draws: NetworkDraws, arrivals: int
) -> NetworkSimulation:
    # numba takes a second to import: only what simulates pays for it.
    from optimizer.simulator.network_kernel import new_arrays, run

    batchers = network.batchers
    pairs = np.array(network.contention.pairs or np.zeros((len(batchers), len(batchers))))
    programs, waiting = _programs(network)
    steps = [steps_of(each.scheduler, each.curve) for each in batchers]
    rows = [
        rows_of(Draws(noise, np.zeros(len(noise), dtype=np.int32), np.ones(1)))
        for noise in draws.noise
    ]
    nodes = _nodes(network, [len(own) for own in steps], [len(own) for own in rows], len(requests))
    runs = len(requests) + sum(
        len(own) for own, batcher in zip(rows, batchers, strict=True) if batcher.calls
    )
    arrays = new_arrays(
        np.concatenate([rules_of(each.scheduler, each.curve) for each in batchers]),
        (network.outside_ms, arrivals, bool(pairs.any())),
        steps=np.concatenate(steps),
        rows=np.concatenate(rows),
        nodes=nodes,
        pairs=pairs,
        programs=programs,
        waiting=waiting,
        runs=np.zeros(runs, dtype=RUN),
        progress=np.zeros((runs, programs.shape[1]), dtype=PROGRESS),
        jobs=np.zeros(sum(map(len, rows)), dtype=JOB),
        requests=requests,
    )
    run(arrays)
    return _simulation_of(network, requests, draws, arrays.rows, nodes, arrays.states)


def _simulation_of(
    network: Network,
    requests: NDArray[np.void],
    draws: NetworkDraws,
    rows: NDArray[np.void],
    nodes: NDArray[np.void],
    states: NDArray[np.void],
) -> NetworkSimulation:
    """Return what a run of the kernel has left in its arrays."""
    return NetworkSimulation(
        source=draws.source,
        arrive_ms=np.ascontiguousarray(requests["arrive"]),
        done_ms=requests["done"] + network.hit_ms * draws.hit,
        refused=np.ascontiguousarray(requests["refused"]),
        batchers=tuple(
            simulation_of(
                batcher.scheduler,
                rows[node["row"] : node["row"] + state["arrivals"]],
                rows[node["row"] : node["row"] + state["executions"]],
                outside_ms=0.0,
            )
            for batcher, node, state in zip(network.batchers, nodes, states, strict=True)
        ),
        outside_ms=network.outside_ms,
    )


def _programs(network: Network) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
    """Return the programs and which of their calls wait for which.

    The last one is that of requests which a response cache answers.
    """
    listed = [*network.programs, ()]
    most = max(map(len, listed))
    programs = np.zeros((len(listed), most), dtype=CALL)
    programs["node"] = -1
    waiting = np.zeros((len(listed), most, most), dtype=np.bool_)
    for p, calls in enumerate(listed):
        for c, call in enumerate(calls):
            further, whole = math.modf(call.count)
            programs[p, c] = (call.batcher, int(whole), further, len({*call.after}))
            waiting[p, list(call.after), c] = True
    return programs, waiting


def _nodes(
    network: Network, steps: Sequence[int], rows: Sequence[int], requests: int
) -> NDArray[np.void]:
    nodes = np.zeros(len(steps), dtype=NODE)
    for name, lengths in (("step", steps), ("row", rows)):
        nodes[f"{name}_end"] = np.cumsum(lengths)
        nodes[name] = nodes[f"{name}_end"] - lengths
    program, first_run = len(network.sources), requests
    for k, batcher in enumerate(network.batchers):
        nodes[k]["program"] = program if batcher.calls else -1
        if batcher.calls:
            nodes[k]["run"] = first_run
            program, first_run = program + 1, first_run + rows[k]
    return nodes
