"""Made-up further measurements of a configuration."""

from __future__ import annotations

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.bursts import (
    BurstComparison,
    BurstLevel,
    QueueBound,
    QueueUnderBursts,
    SendingCost,
)
from optimizer.measurement.cold_start import ColdStart, FirstRequest, Start
from optimizer.measurement.transport_costs import SentAs, TransportComparison, TransportCost
from optimizer.workload.transport import Transport
from tests.unit.studies import level


def cold_start(
    config: ServingConfig, *, warmup: bool = True, left_out: tuple[int, ...] = ()
) -> ColdStart:
    """Ready after 2.5 s with model_warmup, after 1.5 s without; first requests are ten times as
    slow without.
    """
    name = config.models[0].name
    starts = [
        Start(
            warmup=warm,
            server_seconds=1.0,
            load_seconds=1.5 if warm else 0.5,
            loads=3,
            first_requests=tuple(
                FirstRequest(name, size, 4.0 * size if warm else 40.0 * size, 3.0 * size)
                for size in (1, 8)
            ),
            level=level(0.5, 70.0 if warm else 700.0),
        )
        for warm in ((True, False) if warmup else (False,))
    ]
    return ColdStart(config, tuple(starts), left_out)


def transports(config: ServingConfig) -> TransportComparison:
    """The study's own, gRPC, and JSON at half of its throughput."""
    costs = [
        TransportCost(SentAs(transport), (rate, rate), 1.0, 2.0, 2.0, 4.0, 0.2, 0.7, 0.1)
        for transport, rate in ((Transport(), 1000.0), (Transport("http", "json"), 500.0))
    ]
    return TransportComparison(config, tuple(costs), (), 50.0, 250.0, 2.0, 2, 5.0)


def bursts(config: ServingConfig) -> BurstComparison:
    """Unbounded as configured; a bound of 24 answers more requests within the limit."""
    queues = [
        QueueUnderBursts(
            (QueueBound(config.models[0].name, bound),),
            tuple(
                BurstLevel(
                    height, 2000, 0, None, within, rejected, 30.0, 400.0, 500.0 * within, None
                )
                for height in (1.5, 2.0, 3.0)
            ),
        )
        for bound, within, rejected in ((0, 0.5, 0.0), (24, 0.75, 0.2))
    ]
    sending = SendingCost(cores=2, request_cpu_seconds=0.0002, certified_per_second=500.0)
    return BurstComparison(config, tuple(queues), 500.0, 0.4, 6.0, 1.5, 2, sending)
