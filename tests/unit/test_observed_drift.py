"""A deployed bundle in production, beside its measurements: what differs, and which alert tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.errors import UsageError
from optimizer.export.bundle.manifest import Bundle
from optimizer.export.monitoring.alerts import alerts
from optimizer.export.monitoring.observed_drift import DriftFigure, drift_figures
from optimizer.measurement.counters import joined_split
from optimizer.production.advice import Learnt, learn
from optimizer.triton.counter_intervals import ObservedServing, observed_serving
from tests.unit.deployments import ON_CPU
from tests.unit.exported import Exportable
from tests.unit.simulated_counters import CONFIG, Server, poisson, served
from tests.unit.studies import level

SECONDS, RATE = 40, 60.0


def observed(arrive_ms: NDArray[np.float64], slower: float = 1.0) -> tuple[ObservedServing, Learnt]:
    own = observed_serving(Server(served(arrive_ms, slower=slower)).readings(SECONDS), None)
    return own, learn(own.serving, own.payloads, own.intervals, 150.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose measurement was at 60 requests/s, of the simulated server."""
    root = tmp_path_factory.mktemp("exported")
    exported = Exportable(root).export(root / "bundle")
    own, _ = observed(poisson(RATE, SECONDS, 7))
    at_demand = replace(level(1.0, demand=RATE), server=(joined_split(own.intervals),))
    manifest = exported.manifest
    return replace(
        exported,
        manifest=replace(
            manifest,
            models=tuple(replace(each, config=CONFIG) for each in manifest.models),
            measured=replace(manifest.measured, at_demand=at_demand),
            recommended=replace(manifest.recommended, per_replica_per_second=RATE),
        ),
    )


def drifting(bundle: Bundle, own: tuple[ObservedServing, Learnt]) -> dict[str, DriftFigure]:
    figures = drift_figures(bundle, own[1], own[0].config)
    return {each.name: each for each in figures if each.drifts}


def test_production_as_measured_does_not_drift(bundle: Bundle) -> None:
    assert drifting(bundle, observed(poisson(RATE, SECONDS, 8))) == {}


def test_a_slower_server_drifts_in_its_service_times(bundle: Bundle) -> None:
    drift = drifting(bundle, observed(poisson(RATE, SECONDS, 8), slower=1.6))
    assert "+60%" in drift["service time"].observed
    assert {"service time", "mean queue time"} <= {*drift}


def test_more_demand_and_uneven_arrivals_drift(bundle: Bundle) -> None:
    parts = [poisson(150.0 if n % 6 < 2 else 40.0, 1.0, n) + 1e3 * n for n in range(SECONDS)]
    drift = drifting(bundle, observed(np.concatenate(parts)))
    assert {"load of a replica", "arrivals"} <= {*drift}
    assert drift["arrivals"].measured == "poisson"


def test_another_load_compares_no_queue(bundle: Bundle) -> None:
    own = observed(poisson(RATE / 3, SECONDS, 8))
    assert drifting(bundle, own) == {}
    figures = {each.name: each for each in drift_figures(bundle, own[1], own[0].config)}
    assert "not comparable" in figures["mean batch"].measured


def test_another_configuration_drifts(bundle: Bundle) -> None:
    own, learnt = observed(poisson(RATE, SECONDS, 8))
    config = json_format.ParseDict({**CONFIG, "max_batch_size": 4}, ModelConfig())
    drift = drifting(bundle, (replace(own, config=config), learnt))
    assert "max_batch_size: requested 8, the server runs 4" in drift["configuration"].observed


def test_a_bundle_without_the_model_or_its_statistics_is_refused(bundle: Bundle) -> None:
    own, learnt = observed(poisson(RATE, SECONDS, 8))
    other = replace(learnt, stream=replace(learnt.stream, name="other"))
    with pytest.raises(UsageError, match="has no model other; it has bert"):
        drift_figures(bundle, other, own.config)
    measured = replace(bundle.manifest.measured, at_demand=None, at_capacity=None)
    nothing = replace(bundle, manifest=replace(bundle.manifest, measured=measured))
    with pytest.raises(UsageError, match="no server statistics of bert"):
        drift_figures(nothing, learnt, own.config)


def test_the_alerts_that_are_named_are_exported(bundle: Bundle, tmp_path: Path) -> None:
    own, learnt = observed(poisson(RATE, SECONDS, 8))
    named = {each.alert for each in drift_figures(bundle, learnt, own.config)} - {""}
    exported = {alert.name for model in ON_CPU.models for alert in alerts(ON_CPU, model)}
    assert named <= exported | {"TritonBatchesLarger", "TritonBatchesSmaller"}
