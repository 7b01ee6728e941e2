"""What readings of production counters show of one model: its configuration and its intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import model_config_pb2, service_pb2

from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import UsageError
from optimizer.measurement.counters import CounterInterval, by_replica, mean_batches
from optimizer.measurement.level import ServerSplit
from optimizer.triton.counter_recording import CounterReading
from optimizer.triton.running_config import running_model, running_payloads, untunable
from optimizer.triton.statistics import server_split
from optimizer.workload.streams import Payloads

_SUMMARY = "nv_inference_request_summary_us"
_NO_BATCH_SIZES = (
    "there are no statistics by batch size: times are learnt from the mean batches of intervals, "
    "and are less certain"
)
_FALLS = ("inference_count", "execution_count")
_PARTS = ("success", "fail", "queue", "compute_infer")


@dataclass(frozen=True)
class ObservedServing:
    """A model in production: how it is served, and what its replicas did.

    Attributes:
        config: that all replicas run.
        replicas: names of the servers.
        intervals: of all replicas, each in time order.
        quantiles_ms: (percentile, time in the server) by replica, where its metrics have summaries,
            by its last reading.
        by_batch_size: whether the server counts executions by batch size.
        notes: what was left out or is uncertain, in sentences.
    """

    model: str
    version: str
    config: model_config_pb2.ModelConfig
    replicas: tuple[str, ...]
    intervals: tuple[CounterInterval, ...]
    quantiles_ms: Mapping[str, tuple[tuple[float, float], ...]]
    by_batch_size: bool
    notes: tuple[str, ...]

    @property
    def serving(self) -> ModelServing:
        """How each replica serves the model."""
        return running_model(self.config)

    @property
    def payloads(self) -> Payloads:
        """What requests consist of."""
        return running_payloads(self.config)


@dataclass(frozen=True)
class _Counters:
    """The counters of one model at one reading, by version."""

    seconds: float
    replica: str
    versions: Mapping[str, service_pb2.ModelStatistics]


_Pair = tuple[_Counters, _Counters]


def observed_serving(readings: Sequence[CounterReading], model: str | None) -> ObservedServing:
    """Return what readings show of one model.

    Args:
        model: its name; None for the only model that served requests.

    Raises:
        UsageError: where it cannot be told which model is meant, where replicas run different
            configurations, or where the readings show no execution.
    """
    good = [each for each in readings if each.stats]
    if not good:
        reason = next((each.error for each in readings if each.error), "there are none")
        raise UsageError(f"no counters were read: {reason}")
    name, counters = (model, None) if model else _only_model(good)
    config, since, changes = _configuration(good, name)
    counters = counters or [_counters(each, name) for each in good]
    pairs = list(_pairs([each for each in counters if each.seconds >= since]))
    version, others = _busiest_version(pairs, name)
    by_size = any(row.batch_stats for _, after in pairs for row in after.versions.values())
    kept = [each for each in good if each.seconds >= since]
    start = min(each.seconds for each in kept)
    intervals, resets = _intervals(pairs, version, start)
    if not any(each.split.executions for each in intervals):
        raise UsageError(f"{name} executed nothing between the readings: observe it under load")
    return ObservedServing(
        name,
        version,
        config,
        tuple(dict.fromkeys(each.replica for each in intervals)),
        tuple(intervals),
        {own[-1].replica: tuple(_quantiles(own[-1], name, version)) for own in by_replica(kept)},
        by_size,
        (
            *_failed_reads(readings),
            *changes,
            *others,
            *resets,
            *(() if by_size else (_NO_BATCH_SIZES,)),
        ),
    )


def _only_model(readings: Sequence[CounterReading]) -> tuple[str, list[_Counters]]:
    rows = (row for each in readings for row in each.stats.get("model_stats", ()))
    served = {}
    for name in dict.fromkeys(str(row["name"]) for row in rows):
        counters = [_counters(each, name) for each in readings]
        if sum(_requests(_pairs(counters)).values()):
            served[name] = counters
    if not served:
        raise UsageError("no model served a request between the readings: observe under load")
    if len(served) > 1:
        raise UsageError(f"--model: must be one of {', '.join(served)}, which all served requests")
    return next(iter(served.items()))


def _failed_reads(readings: Sequence[CounterReading]) -> Iterator[str]:
    for own in by_replica(readings):
        errors = [each.error for each in own if not each.stats]
        if errors:
            reason = errors[0] or "no counters"
            yield (
                f"{len(errors)} of {len(own)} reads of {own[0].replica} failed, the first: {reason}"
            )


def _configuration(
    readings: Sequence[CounterReading], model: str
) -> tuple[model_config_pb2.ModelConfig, float, list[str]]:
    """Return the configuration that is served in the end, since when, and notes."""
    latest: dict[str, model_config_pb2.ModelConfig] = {}
    since, notes = readings[0].seconds, []
    for each in readings:
        if model not in each.configs:
            continue
        config = model_config_pb2.ModelConfig()
        try:
            json_format.ParseDict(dict(each.configs[model]), config, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise UsageError(f"configs of {each.replica}: {error}") from error
        if latest.get(each.replica, config) != config:
            since = max(since, each.seconds)
            notes.append(
                f"{each.replica} was given another configuration of {model} at {each.seconds:.0f}"
                " s: only what follows counts"
            )
        latest[each.replica] = config
    if not latest:
        raise UsageError(
            f"there is no configuration of {model}: record the answer of v2/models/{model}/config"
        )
    (first, config), *others = latest.items()
    for replica, other in others:
        if running_model(other) != running_model(config):
            raise UsageError(
                f"{first} and {replica} serve {model} with different batching or instances:"
                " observe them one by one"
            )
        if other != config:
            notes.append(
                f"the configurations of {model} on {first} and {replica} differ, but not in"
                " batching and instances"
            )
    refusal = untunable(config)
    if refusal is not None:
        raise UsageError(f"--model: {model} cannot be simulated: {refusal}")
    return config, since, notes


def _counters(reading: CounterReading, model: str) -> _Counters:
    rows = {}
    for row in reading.stats.get("model_stats", ()):
        if row.get("name") == model:
            own = service_pb2.ModelStatistics()
            try:
                json_format.ParseDict(row, own, ignore_unknown_fields=True)
            except json_format.ParseError as error:
                raise UsageError(f"stats of {reading.replica}: {error}") from error
            rows[own.version] = own
    return _Counters(reading.seconds, reading.replica, rows)


def _pairs(counters: Sequence[_Counters]) -> Iterator[_Pair]:
    """Yield the successive readings of each replica."""
    for own in by_replica(counters):
        yield from pairwise(sorted(own, key=lambda each: each.seconds))


def _requests(pairs: Iterator[_Pair] | Sequence[_Pair]) -> Counter[str]:
    """Return the requests that each version served."""
    requests = Counter[str]()
    for before, after in pairs:
        for version, later in after.versions.items():
            earlier = before.versions.get(version)
            if earlier is not None and not _fell(earlier, later):
                count = later.inference_stats.success.count - earlier.inference_stats.success.count
                requests[version] += count
    return +requests


def _busiest_version(pairs: Sequence[_Pair], model: str) -> tuple[str, list[str]]:
    requests = _requests(pairs)
    if not requests:
        raise UsageError(f"{model} served no request between the readings: observe it under load")
    [(busiest, _), *others] = requests.most_common()
    share = {version: count / requests.total() for version, count in others}
    return busiest, [
        f"version {version} of {model} served {own:.0%} of the requests: what follows is about "
        f"version {busiest} alone, whose instances share the machine with it"
        for version, own in share.items()
    ]


def _fell(before: service_pb2.ModelStatistics, after: service_pb2.ModelStatistics) -> bool:
    """Return whether a counter fell, as it does where a server restarts or a model is reloaded."""
    return any(getattr(after, name) < getattr(before, name) for name in _FALLS) or any(
        getattr(after.inference_stats, part).count < getattr(before.inference_stats, part).count
        for part in _PARTS
    )


def _intervals(
    pairs: Sequence[_Pair], version: str, start: float
) -> tuple[list[CounterInterval], list[str]]:
    intervals, notes = [], []
    for before, after in pairs:
        earlier, later = (each.versions.get(version) for each in (before, after))
        seconds = after.seconds - before.seconds
        if earlier is None or later is None or seconds <= 0:
            continue
        if _fell(earlier, later):
            notes.append(
                f"the counters of {after.replica} fell between {before.seconds - start:.0f} and "
                f"{after.seconds - start:.0f} s: the server restarted or the model was reloaded; "
                "this interval is left out"
            )
            continue
        failures = later.inference_stats.fail.count - earlier.inference_stats.fail.count
        begin = before.seconds - start
        split = _split(earlier, later)
        intervals.append(CounterInterval(after.replica, begin, seconds, split, int(failures)))
    return intervals, notes


def _split(earlier: service_pb2.ModelStatistics, later: service_pb2.ModelStatistics) -> ServerSplit:
    """Return what happened between two readings.

    Without statistics by batch size, executions have the two sizes around the mean, and no times.
    """
    split = server_split(earlier, later)
    executions = int(later.execution_count - earlier.execution_count)
    if later.batch_stats or executions <= 0:
        return split
    inferences = int(later.inference_count - earlier.inference_count)
    return replace(split, batches=mean_batches(executions, inferences))


def _quantiles(reading: CounterReading, model: str, version: str) -> Iterator[tuple[float, float]]:
    """Yield percentiles of the time in the server, where its metrics have summaries."""
    for family in text_string_to_metric_families(reading.metrics):
        for sample in family.samples:
            labels = sample.labels
            own = (labels.get("model"), labels.get("version")) == (model, version)
            if own and sample.name == _SUMMARY and "quantile" in labels and sample.value > 0:
                yield 100 * float(labels["quantile"]), sample.value / 1e3
