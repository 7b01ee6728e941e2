"""Advise on a model in production by its own counters: nothing but reads reaches the servers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.commands.advice_files import deployed_source, patch_of, write_observed_space
from optimizer.errors import UsageError, storage_errors
from optimizer.export.bundle.manifest import read_bundle
from optimizer.export.monitoring.observed_drift import DriftFigure, drift_figures
from optimizer.files.atomic import write_json, write_text
from optimizer.files.untrusted import is_there
from optimizer.fleet.price_list import price_list, usual_prices
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.measurement.cost import Price
from optimizer.production.advice import Advice, advise, learn
from optimizer.production.mean_batches import with_batch_sizes
from optimizer.report.advice_tables import advice_parts, drift_parts
from optimizer.report.table import Part
from optimizer.search.level_runner import concurrency
from optimizer.triton.counter_intervals import ObservedServing, observed_serving
from optimizer.triton.counter_recording import CounterReading, read_recording
from optimizer.triton.counter_source import metrics_url, read_counters
from optimizer.triton.deployed_config import is_model_folder, model_folders, read_deployed
from optimizer.triton.prometheus_source import check_selector, read_prometheus

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ObserveOptions:
    """Options of `observe`.

    Attributes:
        sources: addresses of servers (HOST:PORT for gRPC, http://HOST:PORT), or recordings; none
            with `prometheus`.
        model: its name; None for the only one that serves requests.
        seconds: how long the servers are read.
        every_seconds: time between two readings of a server.
        limit_ms: of the 95th percentile of the latency in the server; None is that of now.
        price: instance type of a replica, in the price list.
        metrics: host:port of the metrics of each server; by default port 8002 of its host.
        record: file that the readings are written to.
        json: file that the advice is written to.
        page: file for the advice as a page.
        repository: model repository on this machine that has the model as it is deployed; `space`,
            `patch` and `prometheus` need it.
        space: new space file, with what was learnt.
        patch: file for the best change as a patch of the repository.
        prometheus: URL of a Prometheus that scrapes the servers, which are then not read.
        query_seconds: how far it is queried back.
        selector: matchers of labels of the servers' series.
        after: exported bundle, or patch, with whose measurements production is compared.

    Raises:
        UsageError: for options that do not go together.
    """

    sources: tuple[str, ...] = ()
    model: str | None = None
    seconds: float = 600.0
    every_seconds: float = 1.0
    limit_ms: float | None = None
    price: str | None = None
    metrics: tuple[str, ...] = ()
    record: Path | None = None
    json: Path | None = None
    page: Path | None = None
    repository: Path | None = None
    space: Path | None = None
    patch: Path | None = None
    prometheus: str | None = None
    query_seconds: float = 86_400.0
    selector: str = ""
    after: Path | None = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        recorded = [is_there(Path(source)) for source in self.sources]
        if bool(self.sources) == (self.prometheus is not None):
            raise UsageError("observe: must be given servers or recordings, or --prometheus")
        if any(recorded) and not all(recorded):
            raise UsageError("observe: must be given servers or recordings, and not both")
        check_selector(self.selector)
        if self.metrics and len(self.metrics) != len(self.sources):
            raise UsageError(
                f"--metrics: must be given for each of {len(self.sources)} servers, in their"
                f" order, or not at all; got {len(self.metrics)}"
            )
        if self.replayed and (self.record is not None or self.metrics):
            raise UsageError("--record and --metrics: go with servers, not with recordings")
        if self.repository is None and (self.space or self.patch or self.prometheus):
            raise UsageError(
                "--space, --patch and --prometheus: need --repository, with the model as deployed"
            )
        if self.every_seconds > self.seconds:
            raise UsageError(
                f"--every: must be at most --for, {self.seconds:g} s, got {self.every_seconds:g} s"
            )

    @property
    def replayed(self) -> bool:
        """Whether recordings are read, and no servers."""
        return bool(self.sources) and is_there(Path(self.sources[0]))


@dataclass(frozen=True)
class ObserveResult:
    """What was observed of a model, and the advice.

    Attributes:
        given_limit_ms: None where the limit is the p95 of now.
        compared: with the measurements of a bundle; empty without one.
    """

    observed: ObservedServing
    advice: Advice
    given_limit_ms: float | None
    compared: tuple[DriftFigure, ...] = ()

    @property
    def drifts(self) -> bool:
        """Whether production differs from the bundle's measurements by more than it may."""
        return any(each.drifts for each in self.compared)

    def parts(self) -> Iterator[Part]:
        """Yield tables and sentences for people."""
        own, given = self.observed, self.given_limit_ms is not None
        yield from advice_parts(
            self.advice, own.intervals, own.quantiles_ms, own.notes, limit_given=given
        )
        if self.compared:
            yield from drift_parts(self.compared)

    def to_json(self) -> Mapping[str, Any]:
        """Return it for programs."""
        observed, advice, learnt = self.observed, self.advice, self.advice.learnt
        return {
            "schema_version": SCHEMA_VERSION,
            "model": observed.model,
            "version": observed.version,
            "replicas": list(observed.replicas),
            "notes": list(observed.notes),
            "demand": {
                name: value for name, value in asdict(learnt.demand).items() if name != "arrivals"
            }
            | {"arrivals": learnt.demand.arrivals_text},
            "service": {
                "split": asdict(learnt.service.split),
                "spread": learnt.service.spread,
                "outside_ms": learnt.service.outside_ms,
            },
            "self_check": {
                "trusted": learnt.check.trusted,
                "reasons": list(learnt.check.reasons),
                "figures": [
                    asdict(each) | {"agrees": each.agrees} for each in learnt.check.figures
                ],
            },
            "limit_ms": learnt.stream.limit.latency_ms,
            "limit_given": self.given_limit_ms is not None,
            "price": asdict(advice.price) if advice.price is not None else None,
            "usd_per_hour": advice.current.usd_per_hour,
            "current": asdict(advice.current),
            "needed": asdict(advice.needed),
            "alone": [asdict(each) for each in advice.alone],
            "best": asdict(advice.best),
            "after": [asdict(each) for each in self.compared],
        }


@one_blas_thread()
def observe_production(options: ObserveOptions) -> ObserveResult:
    """Read the counters of servers, or recordings of them, and return what to change.

    Raises:
        UsageError: for a wrong option, or where nothing can be learnt from the readings.
        StorageError: when a recording or the advice cannot be written.
    """
    price = _price(options.price)
    bundle = read_bundle(options.after) if options.after is not None else None
    observed = observed_serving(_readings(options), options.model)
    if not observed.by_batch_size:
        observed = replace(observed, intervals=with_batch_sizes(observed.intervals))
    learnt = learn(observed.serving, observed.payloads, observed.intervals, options.limit_ms)
    advice = advise(learnt, concurrency, price)
    compared = drift_figures(bundle, learnt, observed.config) if bundle is not None else ()
    result = ObserveResult(observed, advice, options.limit_ms, compared)
    if options.json is not None:
        write_json(options.json, result.to_json())
    if options.page is not None:
        # plotly takes a second to import: only a page pays for it.
        from optimizer.report.advice_page import advice_page

        text = advice_page(observed.model, result.parts(), observed.intervals)
        write_text(options.page, text)
    if options.repository is not None:
        source = deployed_source(options.repository, observed)
        if options.space is not None:
            write_observed_space(source, options.space, advice)
        if options.patch is not None:
            write_text(options.patch, patch_of(source, advice))
    return result


def _price(instance_type: str | None) -> Price | None:
    if instance_type is None:
        return None
    prices = usual_prices(price_list())
    if instance_type not in prices:
        raise UsageError(
            f"--price: must be one of {', '.join(sorted(prices))}, or be added to the price list "
            f"(`python -m optimizer prices`); got {instance_type}"
        )
    return prices[instance_type]


def _readings(options: ObserveOptions) -> Sequence[CounterReading]:
    if options.replayed:
        return [each for path in options.sources for each in read_recording(Path(path))]
    readings: list[CounterReading] = []
    with ExitStack() as stack:
        lines: io.TextIOBase | None = None
        if options.record is not None:
            stack.enter_context(storage_errors(options.record))
            lines = stack.enter_context(options.record.open("w", encoding="utf-8"))

        def take(reading: CounterReading) -> None:
            readings.append(reading)
            if lines is not None:
                lines.write(reading.to_line())
                lines.flush()

        if options.prometheus is not None:
            for reading in _scraped(options, options.prometheus):
                take(reading)
        else:
            metrics = [f"http://{each}/metrics" for each in options.metrics]
            read_counters(
                options.sources,
                metrics or [metrics_url(each) for each in options.sources],
                options.seconds,
                options.every_seconds,
                take,
                options.model,
            )
    return readings


def _scraped(options: ObserveOptions, url: str) -> Sequence[CounterReading]:
    """Return what a Prometheus has scraped, with the configurations of the repository."""
    repository = options.repository
    assert repository is not None, "checked with the options"
    if not repository.is_dir():
        raise UsageError(
            f"--repository: {repository} must be a model repository, or one model of it"
        )
    folders = [repository] if is_model_folder(repository) else model_folders(repository)
    configs = {folder.name: read_deployed(folder)[1] for folder in folders}
    for name, config in configs.items():
        config.name = name
    return read_prometheus(url, options.query_seconds, options.selector, configs)
