"""Measure how a configuration starts, with model_warmup and without.

First requests are timed first, each after a load of its own: a request of another size on a model
that has executed something already would hide what is done once for all sizes. Then the server is
restarted for each of the two, and the load at the certified rate begins with the first request.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.errors import ModelLoadFailure, TrialFailure
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.load.single_requests import latencies_ms
from optimizer.measurement.cold_start import ColdStart, FirstRequest, Start
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import longest_lag_ms
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.response_cache import without_cache
from optimizer.triton.model_config import warmup_entries
from optimizer.triton.session import ModelFiles, ServedConfiguration, files_of
from optimizer.workload.streams import LENGTH, Stream, Workload

LEVEL_SECONDS = 60.0
"""Length of the load after a start, unless there is less time."""

_SHORTEST_LEVEL_SECONDS = 2.0
_SHARE_OF_FIRST_REQUESTS = 0.4
_REQUESTS = 11
"""Requests of each size: the first, and those that tell how long a later one takes."""

_REQUEST_SECONDS = 60.0


def measure_cold_start(
    evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
) -> ColdStart:
    """Measure the starts of a configuration within about `seconds`.

    Args:
        load_factor: certified load, which is offered after a start.

    Raises:
        TrialFailure: the server is stopped.
    """
    return _ColdStarts(evaluator, config, load_factor, seconds).measure()


class _ColdStarts:
    """The starts of one configuration, and the time that is left for them."""

    def __init__(
        self, evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
    ) -> None:
        self._evaluator = evaluator
        self._session = evaluator.session
        self._levels = evaluator.levels
        self._workload = evaluator.workload
        self._config = config
        self._load_factor = load_factor
        self._started = time.monotonic()
        self._seconds = seconds
        self._load_seconds: defaultdict[bool, list[float]] = defaultdict(list)
        self._first: defaultdict[bool, list[FirstRequest]] = defaultdict(list)
        self._serving_seconds = 0.0

    def measure(self) -> ColdStart:
        try:
            variants = self._variants()
            left_out = self._first_requests(variants)
            starts = [
                self._start(warmup, each, last=number == len(variants))
                for number, (warmup, each) in enumerate(variants.items(), 1)
            ]
            self._session.retire()
        except TrialFailure as error:
            raise self._session.failure(error) from error
        return ColdStart(self._config, tuple(starts), left_out)

    def _variants(self) -> dict[bool, ServingConfig]:
        """Return the configurations to start, by whether they have model_warmup; ours first."""
        config = self._config
        served = self._serve(config)
        if any(served.control.config(model.name).model_warmup for model in config.models):
            return {True: config, False: without_warmup(config)}
        warm = with_warmup(config, files_of(config, self._evaluator.files))
        try:
            if warm is not None:
                self._serve(warm)
                return {False: config, True: warm}
        except ModelLoadFailure:
            pass  # The model fails on zeros.
        return {False: config}

    def _first_requests(self, variants: Mapping[bool, ServingConfig]) -> tuple[int, ...]:
        """Time first requests, sizes in turn; return the sizes for which there was no time.

        The models answer all of them: a response cache would answer those that repeat.
        """
        sizes = _in_order_of_interest(_batch_sizes(self._config, self._workload))
        end = self._started + _SHARE_OF_FIRST_REQUESTS * self._seconds
        for number, size in enumerate(sizes):
            began = time.monotonic()
            for warmup, config in variants.items():
                self._one_first_request(warmup, without_cache(config), size)
            now = time.monotonic()
            if number > 0 and now + (now - began) > end:
                return tuple(sorted(sizes[number + 1 :]))
        return ()

    def _one_first_request(self, warmup: bool, config: ServingConfig, size: int) -> None:
        served = self._serve(config)
        self._load_seconds[warmup].append(served.load_seconds)
        workload = _of_size(self._workload, config, size)
        levels, count = self._levels.for_workload(workload, _REQUESTS), _REQUESTS
        with levels.target(served, config) as target:
            for item in target.streams:
                latencies = latencies_ms(target, item, count, _REQUEST_SECONDS)
                later_ms = statistics.median(latencies[1:])
                first = FirstRequest(item.stream.target, size, latencies[0], later_ms)
                self._first[warmup].append(first)

    def _start(self, warmup: bool, config: ServingConfig, *, last: bool) -> Start:
        """Restart the server and load it at once."""
        self._session.stop()
        served = self._serve(config)
        self._load_seconds[warmup].append(served.load_seconds)
        loads = self._load_seconds[warmup]
        return Start(
            warmup=warmup,
            server_seconds=served.start_seconds,
            load_seconds=statistics.median(loads),
            loads=len(loads),
            first_requests=tuple(sorted(self._first[warmup], key=lambda r: r.batch_size)),
            level=self._level(served, config, last=last),
        )

    def _serve(self, config: ServingConfig) -> ServedConfiguration:
        began = time.monotonic()
        self._session.retire(wait=True)
        served = self._session.serve(config, files_of(config, self._evaluator.files))
        self._serving_seconds = max(self._serving_seconds, time.monotonic() - began)
        return served

    def _level(
        self, served: ServedConfiguration, config: ServingConfig, *, last: bool
    ) -> LoadLevel:
        left = self._started + self._seconds - time.monotonic()
        affordable = left if last else (left - self._serving_seconds) / 2
        protocol = self._evaluator.protocols.search
        plan = LevelPlan(
            OpenLoop(self._load_factor),
            0.0,
            min(LEVEL_SECONDS, max(_SHORTEST_LEVEL_SECONDS, affordable)),
            protocol.check_timeout_seconds,
            cold=True,
        )
        with self._levels.on(served, config, cold=True) as run:
            level = run(plan)
        # Without this limit in the plan, a level with too much lag is not repeated: it would not
        # be cold again.
        longest_ms = longest_lag_ms(self._workload.shortest_limit_ms)
        return replace(level, client=replace(level.client, longest_lag_ms=longest_ms))


def without_warmup(config: ServingConfig) -> ServingConfig:
    """Return a configuration whose models execute nothing while they load."""
    return replace(config, models=tuple(map(_cold, config.models)))


def with_warmup(config: ServingConfig, files: Mapping[str, ModelFiles]) -> ServingConfig | None:
    """Return a deployed configuration whose models execute batches while they load.

    None for a pipeline, as the inputs of its steps are not known, and for inputs without zeros.
    """
    if config.graph is not None:
        return None
    models = []
    for model in config.models:
        warmup = warmup_entries(model, files[model.name].payloads)
        if not warmup:
            return None
        added = ("model_warmup", json.dumps(warmup))
        models.append(replace(model, parameters=tuple(sorted({*model.parameters, added}))))
    return replace(config, models=tuple(models))


def _cold(model: ModelServing) -> ModelServing:
    if model.artifact.precision != "as_deployed":
        return replace(model, warmup_batch_sizes=())
    # The owner's configuration is changed as by a parameter.
    none = ("model_warmup", json.dumps([]))
    return replace(model, parameters=tuple(sorted({*model.parameters, none})))


def _batch_sizes(config: ServingConfig, workload: Workload) -> list[int]:
    """Return powers of two up to the largest batch, and that; ascending.

    A model without a batch axis takes single inferences.
    """
    largest = max(largest_request(stream, config) for stream in workload.streams)
    powers = [2**n for n in range(largest.bit_length()) if 2**n < largest]
    return [*powers, largest]


def _in_order_of_interest(sizes: Sequence[int]) -> list[int]:
    """Return the smallest and the largest first, for which there is always time."""
    return [sizes[0], *reversed(sizes[1:])]


def largest_request(stream: Stream, config: ServingConfig) -> int:
    """Return the most inferences that one request of a stream can have."""
    payloads = stream.payloads
    if payloads.dimensions_of_file - {LENGTH}:
        # Values of a file may have several shapes, which make no batch.
        return stream.batch_size
    model = next(each for each in config.models if each.name == stream.target)
    return max(1, model.max_batch_size) if payloads.batched else 1


def _of_size(workload: Workload, config: ServingConfig, size: int) -> Workload:
    """Return the streams whose models take batches of this size, with requests of it."""
    streams = [
        replace(stream, batch_size=size)
        for stream in workload.streams
        if size <= largest_request(stream, config)
    ]
    return replace(workload, streams=tuple(streams))
