"""Simulation of Triton's dynamic batcher from arrivals and service times.

`open_loop` takes arrivals that do not depend on replies, `closed_loop` takes clients that wait for
replies. Both are deterministic; all randomness is in the `Draws`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import (
    NO_QUEUE_POLICY,
    ModelServing,
    QueuePolicy,
)
from optimizer.simulator.batcher_layout import ROW, RULES, STEP
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.request_sizes import padded_length
from optimizer.workload.streams import LENGTH, Payloads, Stream


@dataclass(frozen=True)
class Scheduler:
    """The batcher's settings and its instances.

    Attributes:
        max_batch_size: in inferences, as the preferred sizes are.
        preferred_batch_sizes: empty means [max_batch_size].
        dynamic: False executes each request alone.
        prefetch: schedule batches, two for each instance, before an instance is idle.
        request_size: inferences per request.
        free_dimensions: whether tensor dimensions may differ between requests. Triton then checks
            each request on arrival, whatever batch size it waits for.
    """

    max_batch_size: int
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    dynamic: bool = True
    instances: int = 1
    prefetch: bool = True
    request_size: int = 1
    free_dimensions: bool = True
    policy: QueuePolicy = NO_QUEUE_POLICY

    @property
    def preferred(self) -> tuple[int, ...]:
        """Preferred batch sizes as Triton reads them, ascending."""
        return tuple(sorted(set(self.preferred_batch_sizes or (self.max_batch_size,))))

    @property
    def most_requests(self) -> int:
        """Number of requests in the largest batch."""
        return self.max_batch_size // self.request_size if self.dynamic else 1


def scheduler_of(model: ModelServing, stream: Stream) -> Scheduler:
    """Return how Triton schedules the requests of `stream` to `model`.

    The response cache and the rate limiter are not simulated.
    """
    batching = model.batching
    return Scheduler(
        max_batch_size=max(model.max_batch_size, stream.batch_size),
        preferred_batch_sizes=batching.preferred_batch_sizes if batching else (),
        max_queue_delay_us=batching.max_queue_delay_us if batching else 0,
        dynamic=batching is not None,
        instances=model.instance_count,
        request_size=stream.batch_size,
        free_dimensions=_free_dimensions(stream),
        policy=batching.queue_policy if batching else NO_QUEUE_POLICY,
    )


@dataclass(frozen=True)
class Shapes:
    """Request shapes: a share `shares[i]` of requests takes `factors[i]` of the curve's time."""

    shares: tuple[float, ...] = (1.0,)
    factors: tuple[float, ...] = (1.0,)


ONE_SHAPE = Shapes()
_MOST_SHAPES = 4096


def shapes_of(model: ModelServing, stream: Stream, factor: Callable[[int], float]) -> Shapes:
    """Return the shapes of the requests that `stream` sends to `model`.

    Args:
        factor: returns the factor of the curve's time for a padded length in tokens.
    """
    padded, shares = _padded_lengths(model, stream)
    factors = np.array([factor(length) for length in padded])
    other = _other_shapes(stream.payloads)
    joint = np.outer(shares, other).ravel()
    return Shapes(tuple(joint.tolist()), tuple(np.repeat(factors, len(other)).tolist()))


def _padded_lengths(
    model: ModelServing, stream: Stream
) -> tuple[Sequence[int], NDArray[np.float64]]:
    """Return the lengths that requests are padded to, and the share of each."""
    lengths = stream.payloads.lengths
    if not any(LENGTH in tensor.shape for tensor in stream.payloads.tensors):
        return (lengths.longest,), np.ones(1)
    share_of: dict[int, float] = defaultdict(float)
    for length, weight in zip(lengths.lengths, lengths.weights, strict=True):
        share_of[padded_length(length, model.padding, lengths)] += weight / sum(lengths.weights)
    padded = sorted(share_of)
    # A request of several inferences has the length of the longest.
    up_to = np.cumsum([share_of[length] for length in padded]) ** stream.batch_size
    return padded, np.diff(up_to, prepend=0.0)


def _other_shapes(payloads: Payloads) -> NDArray[np.float64]:
    """Return the shares of the shapes that the other free dimensions make.

    Above `_MOST_SHAPES`, two requests hardly ever have one shape, however many shapes there are.
    """
    joint = payloads.dimensions_of_file
    own: list[Sequence[float]] = [
        each.sizes.weights
        for each in payloads.dimensions
        if each.sizes is not None and each.name not in joint
    ]
    if payloads.file is not None:
        own.append(payloads.file.shapes)
    if math.prod(map(len, own)) > _MOST_SHAPES:
        return np.full(_MOST_SHAPES, 1 / _MOST_SHAPES)
    shares = np.ones(1)
    for weights in own:
        shares = np.outer(shares, np.asarray(weights) / sum(weights)).ravel()
    return shares


def _free_dimensions(stream: Stream) -> bool:
    return any(tensor.free for tensor in stream.payloads.tensors)


@dataclass(frozen=True)
class Draws:
    """Random numbers of a simulation, drawn beforehand so that several loads can share them.

    Attributes:
        noise: time factor of each execution, of which there are at most [requests].
        shape: index of each request's shape, shape [requests].
        factors: time factor by request shape.
    """

    noise: NDArray[np.float64]
    shape: NDArray[np.int32]
    factors: NDArray[np.float64]


def draw(requests: int, spread: float, shapes: Shapes, rng: np.random.Generator) -> Draws:
    """Draw the random numbers of `requests` requests.

    Noise has a gamma distribution of mean 1 and coefficient of variation `spread`: always above 0,
    skewed to the right as service times are, exponential at 1.
    """
    noise = np.ones(requests)
    if spread > 0:
        noise = rng.standard_gamma(spread**-2, requests) * spread**2
    shape = np.zeros(requests, dtype=np.int32)
    if len(shapes.shares) > 1:
        shares = np.asarray(shapes.shares) / sum(shapes.shares)
        shape = rng.choice(len(shares), size=requests, p=shares).astype(np.int32)
    return Draws(noise, shape, np.asarray(shapes.factors, dtype=np.float64))


@dataclass(frozen=True)
class Simulation:
    """Every request and execution of a simulation; times in ms since the start.

    Attributes:
        arrive_ms: when the request reaches the server, shape [requests], as the next three.
        begin_ms: when its execution begins; NaN where it was refused.
        done_ms: when it is answered.
        refused: whether it was refused.
        execution_begin_ms: shape [executions], in the order in which they begin, as the next two.
        execution_ms: how long the execution takes.
        execution_size: in inferences.
        outside_ms: time between client and server, which adds to every latency.
    """

    arrive_ms: NDArray[np.float64]
    begin_ms: NDArray[np.float64]
    done_ms: NDArray[np.float64]
    refused: NDArray[np.bool_]
    execution_begin_ms: NDArray[np.float64]
    execution_ms: NDArray[np.float64]
    execution_size: NDArray[np.int64]
    outside_ms: float

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Latency at the client of every request, refused ones included; shape [requests]."""
        return self.done_ms - self.arrive_ms + self.outside_ms

    @property
    def queue_ms(self) -> NDArray[np.float64]:
        """Time from arrival to execution, shape [requests]; NaN where it was refused."""
        return self.begin_ms - self.arrive_ms


def histogram(execution_size: NDArray[np.int64]) -> dict[int, int]:
    """Count executions by batch size, ascending."""
    counts = np.bincount(execution_size)
    return {int(size): int(counts[size]) for size in np.flatnonzero(counts)}


def open_loop(
    scheduler: Scheduler, curve: ServiceCurve, arrive_ms: NDArray[np.float64], draws: Draws
) -> Simulation:
    """Simulate requests that arrive at given times, ascending, shape [requests].

    Raises:
        ValueError: when scheduler, curve and request size do not fit together.
    """
    rows = rows_of(draws)
    rows["arrive"][:-2] = arrive_ms
    return _simulate(scheduler, curve, rows, arrivals=len(arrive_ms))


def closed_loop(
    scheduler: Scheduler, curve: ServiceCurve, concurrency: int, draws: Draws
) -> Simulation:
    """Simulate clients that keep `concurrency` requests outstanding until all are sent.

    All clients begin at once, and each sends its next request on a reply.

    Raises:
        ValueError: when scheduler, curve and request size do not fit together.
    """
    rows = rows_of(draws)
    return _simulate(scheduler, curve, rows, arrivals=min(concurrency, len(draws.shape)))


def _simulate(
    scheduler: Scheduler, curve: ServiceCurve, rows: NDArray[np.void], arrivals: int
) -> Simulation:
    # numba takes a second to import: only what simulates pays for it.
    from optimizer.simulator.batcher_kernel import run

    executions = run(rules_of(scheduler, curve), steps_of(scheduler, curve), rows, arrivals)
    return simulation_of(scheduler, rows[:-2], rows[:executions], curve.outside_ms)


def simulation_of(
    scheduler: Scheduler,
    requests: NDArray[np.void],
    executed: NDArray[np.void],
    outside_ms: float,
) -> Simulation:
    """Return the requests and executions of a batcher from the rows that hold them."""
    return Simulation(
        arrive_ms=np.ascontiguousarray(requests["arrive"]),
        begin_ms=np.ascontiguousarray(requests["begin"]),
        done_ms=np.ascontiguousarray(requests["done"]),
        refused=np.ascontiguousarray(requests["refused"]),
        execution_begin_ms=np.ascontiguousarray(executed["execution_begin"]),
        execution_ms=np.ascontiguousarray(executed["execution_ms"]),
        execution_size=executed["execution_size"].astype(np.int64) * scheduler.request_size,
        outside_ms=outside_ms,
    )


def rules_of(scheduler: Scheduler, curve: ServiceCurve) -> NDArray[np.void]:
    """Return the batcher's `RULES`, shape [1].

    Raises:
        ValueError: when a request is larger than the largest batch.
    """
    size, most, policy = scheduler.request_size, scheduler.most_requests, scheduler.policy
    if most < 1:
        raise ValueError(
            f"a request of {size} inferences is above max_batch_size {scheduler.max_batch_size}"
        )
    largest = max(scheduler.preferred)
    rules = np.zeros(1, dtype=RULES)
    rules["dynamic"] = scheduler.dynamic
    rules["prefetch"] = scheduler.prefetch and not policy.bounds
    rules["instances"] = scheduler.instances
    rules["most"] = most
    rules["most_preferred"] = largest // size
    rules["least_full"] = math.ceil(largest / size)
    rules["delay_ms"] = scheduler.max_queue_delay_us / 1e3 if scheduler.dynamic else 0.0
    rules["looks_at_every_request"] = scheduler.free_dimensions
    rules["most_queued"] = policy.max_queue_size
    rules["timeout_ms"] = policy.timeout_us / 1e3 if policy.timeout_us > 0 else math.inf
    rules["refuses"] = policy.timeout_action == "reject"
    rules["again_ms"] = curve.outside_ms
    rules["wake_ms"] = curve.wake_ms
    return rules


def steps_of(scheduler: Scheduler, curve: ServiceCurve) -> NDArray[np.void]:
    """Return the batcher's rows of `STEP` before anything was executed.

    Raises:
        ValueError: when the curve is of fewer instances.
    """
    size, most, instances = scheduler.request_size, scheduler.most_requests, scheduler.instances
    if len(curve.busy_factors) < instances:
        raise ValueError(
            f"busy_factors must be one for each of {instances} instances, "
            f"but there are {len(curve.busy_factors)}"
        )
    steps = np.zeros(max(most + 1, instances), dtype=STEP)
    steps["execution_ms"][: most + 1] = curve.table_ms(most * size)[::size]
    steps["busy_factor"][:instances] = curve.busy_factors[:instances]
    steps["done"] = np.inf
    steps["idle_since"] = -1.0
    batches = np.arange(most + 1)
    preferred = np.array(scheduler.preferred)
    # A preferred size that is no whole number of requests is never met exactly.
    whole = np.array([0, *preferred[preferred % size == 0] // size])
    steps["preferred_up_to"][: most + 1] = whole[np.searchsorted(whole, batches, "right") - 1]
    above = np.array([*-(-preferred // size), 0])
    steps["preferred_above"][: most + 1] = above[
        np.searchsorted(preferred, batches * size, "right")
    ]
    return steps


def rows_of(draws: Draws) -> NDArray[np.void]:
    """Return the batcher's rows of `ROW` before anything has arrived, shape [requests + 2]."""
    requests = len(draws.shape)
    rows = np.zeros(requests + 2, dtype=ROW)
    rows["noise"][:-2] = draws.noise
    rows["shape"][:-2] = draws.shape
    rows["factor"][:-2] = draws.factors[draws.shape]
    rows["begin"] = np.nan
    return rows
