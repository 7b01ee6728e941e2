"""Advice from production's counters: what is learnt, what is checked, and what is advised."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.cli import main
from optimizer.commands.advice_files import deployed_source, patch_of, write_observed_space
from optimizer.commands.observe import ObserveOptions, observe_production
from optimizer.errors import RunError, UsageError
from optimizer.files.arrival_trace import read_trace
from optimizer.files.untrusted_yaml import parse_yaml
from optimizer.measurement.cost import Price
from optimizer.measurement.counters import joined_split
from optimizer.production.advice import Advice, Learnt, advise, changes, learn
from optimizer.production.demand import observed_demand, trace_of
from optimizer.production.mean_batches import with_batch_sizes
from optimizer.report.advice_tables import advice_parts
from optimizer.report.number_formats import usd
from optimizer.report.table import Line, Table
from optimizer.search.level_runner import concurrency
from optimizer.triton.counter_intervals import ObservedServing, observed_serving
from optimizer.triton.counter_recording import CounterReading, read_recording
from optimizer.triton.prometheus_source import read_prometheus
from optimizer.workload.arrivals import ArrivalTrace
from tests.unit.repositories import write_config
from tests.unit.simulated_counters import (
    CONFIG,
    EACH_MS,
    FIXED_MS,
    SCHEDULER,
    Server,
    poisson,
    recorded,
    served,
)
from tests.unit.studies import PRICE

SECONDS = 60
BUSY = Server(served(poisson(60.0, SECONDS)))
"""A server at two thirds of what it serves without batches, which form therefore."""


def observed(readings: Sequence[CounterReading], model: str | None = None) -> ObservedServing:
    return observed_serving(readings, model)


def learnt_from(readings: Sequence[CounterReading]) -> Learnt:
    own = observed(readings)
    return learn(own.serving, own.payloads, own.intervals, 150.0)


@pytest.fixture(scope="module")
def advice() -> Advice:
    return advise(learnt_from(BUSY.readings(SECONDS)), concurrency)


def test_demand_and_service_times_are_learnt(advice: Advice) -> None:
    assert advice.learnt.demand.mean_per_second == pytest.approx(60, rel=0.05)
    assert advice.learnt.demand.mean_low < 60 < advice.learnt.demand.mean_high
    assert advice.learnt.demand.arrivals == "poisson"
    assert advice.learnt.demand.peak_per_second > advice.learnt.demand.mean_per_second
    curve = advice.learnt.service.curve(advice.learnt.serving)
    for size in (1, 2, 3):
        assert curve.table_ms(8)[size] == pytest.approx(FIXED_MS + EACH_MS * size, rel=0.04)
    assert advice.learnt.service.spread == pytest.approx(0.05, rel=0.4)


def test_small_batches_tell_how_the_times_grow() -> None:
    """Whatever makes a server in production faster or slower acts on batches of all sizes."""
    service = learnt_from(Server(served(poisson(18.0, SECONDS))).readings(SECONDS)).service
    assert service.largest_batch == 2
    model = replace(observed(BUSY.readings(2)).serving, max_batch_size=8)
    assert service.curve(model).table_ms(8)[8] == pytest.approx(FIXED_MS + EACH_MS * 8, rel=0.1)


def test_the_self_check_reproduces_a_server_that_is_as_simulated(advice: Advice) -> None:
    assert advice.learnt.check.trusted, advice.learnt.check.figures
    assert [each.name for each in advice.learnt.check.figures] == [
        "mean queue time", "mean batch", "throughput", "utilisation",
    ]  # fmt: skip


def test_capacity_and_latency_are_those_of_a_simulation_of_the_truth(advice: Advice) -> None:
    capacity = advice.current.capacity_per_second
    predicted = advice.current.p95_ms
    assert predicted is not None

    def p95(rate: float) -> float:
        return float(np.percentile(served(poisson(rate, 600.0, seed=3)).latency_ms, 95))

    assert p95(capacity.low) < 150 < p95(capacity.high)
    assert predicted.low < p95(advice.learnt.demand.peak_per_second) < predicted.high


def test_replicas_that_are_too_many_are_told_with_what_they_cost() -> None:
    readings = []
    for n in range(3):
        readings += Server(served(poisson(20.0, SECONDS, seed=n)), f"gpu-{n}:8001").readings(
            SECONDS
        )
    own = observed(readings)
    learnt = learn(own.serving, own.payloads, own.intervals, 150.0)
    assert learnt.replicas == 3
    assert learnt.demand.mean_per_second == pytest.approx(60, rel=0.05)
    advice = advise(learnt, concurrency, PRICE)
    assert (advice.current.replicas, advice.current.usd_per_hour) == (3, 3 * PRICE.usd_per_hour)
    needed = advice.needed.replicas
    assert needed is not None
    assert needed < 3
    parts = [*advice_parts(advice, own.intervals, own.quantiles_ms, (), limit_given=True)]
    [table] = [x for x in parts if isinstance(x, Table) and x.title.startswith("Predictions")]
    figures = [(row[0], row[2], row[5]) for row in table.rows[:2]]
    assert figures == [
        ("as it is now", "3", "$1.08"),
        ("number of replicas alone", str(needed), usd(needed * PRICE.usd_per_hour)),
    ]
    told = " ".join(each.text for each in parts if isinstance(each, Line))
    assert f"there are 3 now. That saves {usd((3 - needed) * PRICE.usd_per_hour)} an hour." in told


def test_without_batching_the_advice_is_to_batch_and_to_test_it() -> None:
    alone = replace(SCHEDULER, dynamic=False)
    readings = Server(served(poisson(30.0, SECONDS), alone)).readings(SECONDS)
    unbatched = {name: value for name, value in CONFIG.items() if name != "dynamic_batching"}
    readings[0] = replace(readings[0], configs={"bert": unbatched})
    own = advise(learnt_from(readings), concurrency)
    assert own.learnt.check.trusted, own.learnt.check.figures
    assert own.learnt.serving.batching is None
    [batched] = [each for each in own.alone if each.serving.batching is not None]
    assert "batching on" in batched.name
    assert "hardly or never executed" in " ".join(batched.test_first)
    # Batches that never ran keep their uncertainty.
    assert batched.capacity_per_second.high > 1.5 * batched.capacity_per_second.low


def test_uneven_and_regular_arrivals_are_told_apart() -> None:
    parts = [poisson(90.0 if n % 6 < 2 else 10.0, 1.0, n) + 1e3 * n for n in range(SECONDS)]
    uneven = observed(Server(served(np.concatenate(parts))).readings(SECONDS))
    demand = observed_demand(uneven.intervals)
    assert isinstance(demand.arrivals, ArrivalTrace)
    assert demand.dispersion is not None
    assert demand.dispersion > 5
    regular = observed(Server(served(np.arange(0, 1e3 * SECONDS, 25.0))).readings(SECONDS))
    assert observed_demand(regular.intervals).arrivals == "constant"


def test_bursts_within_an_interval_are_not_trusted() -> None:
    bursts = np.sort((poisson(4.0, SECONDS)[:, None] + 0.5 * np.arange(8)).ravel())
    check = learnt_from(Server(served(bursts)).readings(SECONDS)).check
    assert not check.trusted
    assert any("bursts within one interval" in reason for reason in check.reasons)


def test_a_saturated_server_is_not_trusted() -> None:
    check = learnt_from(Server(served(poisson(300.0, SECONDS))).readings(SECONDS)).check
    assert check.saturated
    assert not check.trusted
    assert "saturated" in check.reasons[0]


def test_a_restart_leaves_one_interval_out_and_is_named() -> None:
    readings = BUSY.readings(30)
    after = replace(BUSY, count_before=0)
    later = [replace(each, seconds=each.seconds + 31) for each in after.readings(29)]
    own = observed([*readings, *[replace(each, configs={}) for each in later]])
    assert len(own.intervals) == 30 + 29
    assert "the server restarted or the model was reloaded" in own.notes[0]
    assert "between 30 and 31 s" in own.notes[0]


def test_another_configuration_counts_from_then_on() -> None:
    readings = BUSY.readings(SECONDS)
    changed = {**CONFIG, "max_batch_size": 4}
    readings[20] = replace(readings[20], configs={"bert": changed})
    own = observed(readings)
    assert own.serving.max_batch_size == 4
    assert len(own.intervals) == 40
    assert "another configuration of bert at 20 s" in own.notes[0]


def test_missing_reads_are_counted_and_the_interval_spans_them() -> None:
    readings = BUSY.readings(SECONDS)
    readings[10:13] = [
        CounterReading(each.seconds, "server", error="cannot read") for each in readings[10:13]
    ]
    own = observed(readings)
    assert max(each.seconds for each in own.intervals) == pytest.approx(4.0)
    assert own.notes == ("3 of 61 reads of server failed, the first: cannot read",)


def test_the_busier_of_two_versions_is_observed() -> None:
    other = replace(BUSY, version="2", simulation=served(poisson(5.0, SECONDS)))
    pairs = zip(BUSY.readings(SECONDS), other.readings(SECONDS), strict=True)
    both = [
        replace(one, stats={"model_stats": [*one.stats["model_stats"], *two.stats["model_stats"]]})
        for one, two in pairs
    ]
    own = observed(both)
    assert own.version == "1"
    assert "version 2 of bert served 8% of the requests" in own.notes[0]


def test_a_server_without_statistics_by_batch_size_is_named() -> None:
    parts = [poisson(20.0 if n % 2 else 70.0, 20.0, n) + 20e3 * n for n in range(6)]
    server = Server(served(np.concatenate(parts)), batch_stats=False)
    own = observed(server.readings(120))
    assert "no statistics by batch size" in own.notes[0]
    learnt = learn(own.serving, own.payloads, with_batch_sizes(own.intervals), 150.0)
    curve = learnt.service.curve(own.serving).table_ms(8)
    for size in (1, 2, 3):
        assert curve[size] == pytest.approx(FIXED_MS + EACH_MS * size, rel=0.06)
    assert learnt.check.trusted, learnt.check.figures


def message_of(readings: Sequence[CounterReading], model: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        observed_serving(readings, model)
    return str(error.value)


def test_what_cannot_be_observed_is_refused_with_the_reason() -> None:
    readings = BUSY.readings(3)
    assert "no counters were read: refused" in message_of(
        [CounterReading(0.0, "server", error="refused")]
    )
    idle = [replace(each, stats=readings[0].stats) for each in readings]
    assert "no model served a request" in message_of(idle)
    assert "other served no request" in message_of(readings, "other") or "no configuration" in (
        message_of(readings, "other")
    )
    nothing = [replace(each, configs={}) for each in readings]
    assert "record the answer of v2/models/bert/config" in message_of(nothing)
    second = [replace(each, replica="b") for each in readings]
    second[0] = replace(second[0], configs={"bert": {**CONFIG, "max_batch_size": 4}})
    assert "different batching or instances" in message_of([*readings, *second])
    second[0] = replace(second[0], configs={"bert": {**CONFIG, "parameters": {"a": {}}}})
    assert "differ, but not in batching" in observed([*readings, *second]).notes[0]
    ensemble = {
        "name": "bert",
        "ensemble_scheduling": {"step": [{"model_name": "tokenizer"}, {"model_name": "encoder"}]},
    }
    readings[0] = replace(readings[0], configs={"bert": ensemble})
    assert "observe its steps, tokenizer, encoder" in message_of(readings)


def test_one_of_several_models_must_be_named() -> None:
    def twice(each: CounterReading) -> CounterReading:
        [row] = each.stats["model_stats"]
        return replace(each, stats={"model_stats": [row, {**row, "name": "other"}]})

    readings = [twice(each) for each in BUSY.readings(3)]
    assert "--model: must be one of bert, other" in message_of(readings)
    assert observed_serving(readings, "bert").model == "bert"


def test_a_recording_gives_the_same_advice_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, written = tmp_path / "counters.jsonl", tmp_path / "advice.json"
    readings = BUSY.readings(30)
    file.write_text(recorded(readings))
    assert read_recording(file) == tuple(readings)
    page = tmp_path / "advice.html"
    options = ["--limit", "150ms", "--price", "ml.g5.xlarge"]
    options += ["--json", str(written), "--page", str(page)]
    results = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["observe", str(file), *options])
        assert ended.value.code == 0
        results.append((capsys.readouterr().out, written.read_bytes()))
    assert results[0] == results[1]
    assert "The simulation reproduces what was observed." in results[0][0]
    html = page.read_text()
    assert "<h1>bert in production</h1>" in html
    assert "The simulation reproduces what was observed." in html
    assert "Requests answered" in html
    advice = json.loads(results[0][1])
    assert advice["self_check"]["trusted"]
    assert advice["current"]["usd_per_hour"] > 0


def test_curl_and_a_shell_make_a_recording(tmp_path: Path) -> None:
    """HTTP's JSON has numbers where gRPC's has texts."""
    lines = []
    for each in BUSY.readings(10):
        stats = json.loads(json.dumps(each.stats), object_hook=_numbers)
        lines.append(
            json.dumps({"seconds": each.seconds, "stats": stats, "configs": dict(each.configs)})
        )
    file = tmp_path / "counters.jsonl"
    file.write_text("\n".join(lines))
    own = observed(read_recording(file))
    assert own.intervals == observed(BUSY.readings(10)).intervals


def _numbers(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: int(value)
        if isinstance(value, str) and value.isdecimal() and name != "version"
        else value
        for name, value in content.items()
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2: must be an object with the keys seconds and stats"),
        ("{", "line 2: must be JSON"),
        ('{"seconds": "now"}', "line 2: seconds: must be a number"),
        ('{"seconds": 1, "stat": {}}', "line 2: stat: must be one of seconds, replica"),
        ('{"seconds": 1, "stats": []}', "line 2: stats: must be an object"),
        ('{"seconds": 1, "stats": {"model_stats": [1]}}', "line 2: stats.model_stats: must list"),
    ],
)
def test_a_wrong_line_of_a_recording_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "counters.jsonl"
    file.write_text(f"{BUSY.readings(1)[0].to_line()}{line}\n")
    with pytest.raises(UsageError, match=re.escape(file.name)) as error:
        read_recording(file)
    assert message in str(error.value)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "counters.jsonl"
    file.write_text("")
    for options, message in (
        ({"sources": (str(file), "host:8001")}, "servers or recordings, and not both"),
        ({"sources": (str(file),), "record": file}, "--record and --metrics"),
        ({"sources": ("a:1", "b:1"), "metrics": ("a:2",)}, "--metrics: must be given for each"),
        ({"sources": ("a:1",), "seconds": 1.0, "every_seconds": 2.0}, "--every: must be at most"),
    ):
        with pytest.raises(UsageError, match=message):
            ObserveOptions(**options)
    with pytest.raises(UsageError, match="must be HOST:PORT"):
        observe_production(ObserveOptions(("nowhere",), seconds=1.0))
    with pytest.raises(UsageError, match="--price: must be one of"):
        observe_production(ObserveOptions((str(file),), price="none.large"))


def test_a_server_that_is_not_there_is_named() -> None:
    options = ObserveOptions(("127.0.0.1:1",), seconds=0.2, every_seconds=0.1)
    with pytest.raises(UsageError, match="no counters were read: cannot read the statistics"):
        observe_production(options)


def test_changes_are_described_by_the_fields_of_the_configuration() -> None:
    serving = observed(BUSY.readings(3)).serving
    assert changes(serving, serving) == {}
    alone = replace(serving, batching=None, max_batch_size=1)
    assert [*changes(serving, alone).values()] == ["batching off"]
    assert serving.batching is not None
    slower = replace(serving, batching=replace(serving.batching, max_queue_delay_us=500))
    assert [*changes(serving, slower).values()] == ["max_queue_delay_microseconds 500"]


class ReadOnlyTriton(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers statistics and configurations as the simulated server, and keeps what it is asked."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.readings = iter(BUSY.readings(SECONDS))

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        method = details.method.rpartition("/")[2]
        self.methods.append(method)
        replies: dict[str, Message] = {
            "ModelStatistics": service_pb2.ModelStatisticsResponse(),
            "ModelConfig": service_pb2.ModelConfigResponse(),
        }
        if method not in replies:
            return None
        reply = replies[method]
        content: Any = {"config": CONFIG} if method == "ModelConfig" else next(self.readings).stats
        json_format.ParseDict(content, reply)
        return grpc.unary_unary_rpc_method_handler(lambda _, __: reply.SerializeToString())


def test_nothing_but_reads_reaches_a_server(tmp_path: Path) -> None:
    handler = ReadOnlyTriton()
    server = grpc.server(futures.ThreadPoolExecutor(2), [handler])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    record = tmp_path / "counters.jsonl"
    try:
        options = ObserveOptions(
            (address,), seconds=1.0, every_seconds=0.05, metrics=("127.0.0.1:1",), record=record
        )
        result = observe_production(options)
    finally:
        server.stop(None).wait()
    assert {*handler.methods} == {"ModelStatistics", "ModelConfig"}
    assert handler.methods.count("ModelStatistics") == 21
    assert observe_production(ObserveOptions((str(record),))).to_json() == result.to_json()


DEPLOYED = """\
name: "bert"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] } ]
dynamic_batching { }  # ours
"""


def test_advice_becomes_a_patch_and_a_space_file(
    advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = write_config(tmp_path / "models", DEPLOYED, "bert").parent
    own = observed(BUSY.readings(SECONDS))
    source = deployed_source(repository, own)
    assert advice.best.serving.instance_count == 2
    text = patch_of(source, advice)
    assert text.startswith("# Advice of `python -m optimizer observe` for bert")
    assert "Predicted, and not measured" in text
    assert "+instance_group {" in text
    assert " dynamic_batching { }  # ours" in text
    with pytest.raises(UsageError, match="nothing to patch"):
        patch_of(source, replace(advice, best=advice.current))
    monkeypatch.setattr("optimizer.commands.init.open_space", lambda *_: None)
    demand = replace(advice.learnt.demand, arrivals=trace_of(own.intervals, None))
    priced = replace(
        advice,
        learnt=replace(advice.learnt, demand=demand),
        price=Price("ml.g5.xlarge", 1.4, "list", "2026-08"),
    )
    space, trace = write_observed_space(source, tmp_path / "space.yaml", priced)
    content = parse_yaml(space.read_text())
    assert content["traffic"]["arrivals"] == {"trace": trace.name}
    assert len(read_trace(trace).at_seconds) > 1000
    assert content["limit"]["latency_ms"] == 150
    assert content["price"] == {"instance_type": "ml.g5.xlarge"}
    # What is served must be what the repository has.
    (repository / "bert" / "config.pbtxt").write_text(DEPLOYED.replace("8", "4"))
    with pytest.raises(UsageError, match="max_batch_size 4, served with 8"):
        deployed_source(repository, own)
    with pytest.raises(UsageError, match=r"--repository: .*nowhere must be a model repository"):
        deployed_source(tmp_path / "nowhere", own)
    with pytest.raises(UsageError, match="need --repository"):
        ObserveOptions(("a:1",), patch=tmp_path / "it.patch")


class Answering(BaseHTTPRequestHandler):
    """A Prometheus with the series of two GPUs of one server."""

    def do_GET(self) -> None:
        self.server.paths.append(unquote(self.path))  # type: ignore[attr-defined]
        body = json.dumps({"status": "success", "data": scraped()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def scraped() -> dict[str, Any]:
    names: dict[str, str] = {
        "nv_inference_request_success": "inference_stats.success.count",
        "nv_inference_request_duration_us": "inference_stats.success.ns",
        "nv_inference_queue_duration_us": "inference_stats.queue.ns",
        "nv_inference_compute_infer_duration_us": "inference_stats.compute_infer.ns",
        "nv_inference_count": "inference_count",
        "nv_inference_exec_count": "execution_count",
    }
    result: list[dict[str, Any]] = []
    for name, path in names.items():
        values = []
        for each in BUSY.readings(30):
            value: Any = each.stats["model_stats"][0]
            for key in path.split("."):
                value = value[key]
            values.append(
                [1e9 + each.seconds, str(int(value) / (2e3 if path.endswith("ns") else 2))]
            )
        for gpu in "ab":
            labels = {
                "__name__": name,
                "instance": "gpu-0:8002",
                "model": "bert",
                "version": "1",
                "gpu_uuid": gpu,
            }
            result.append({"metric": labels, "values": values})
    return {"resultType": "matrix", "result": result}


def test_series_of_a_prometheus_are_summed_over_gpus_and_read_as_scraped() -> None:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    server.paths = []  # type: ignore[attr-defined]
    config = json_format.ParseDict(dict(CONFIG), ModelConfig())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever)
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            readings = read_prometheus(url, 30.0, 'job="a"', {"bert": config})
        finally:
            server.shutdown()
            server.server_close()
    [path] = server.paths  # type: ignore[attr-defined]
    assert path.endswith(', job="a"}[30s]')
    own = observed(readings)
    assert own.replicas == ("gpu-0:8002",)
    split, truth = (joined_split(each.intervals) for each in (own, observed(BUSY.readings(30))))
    assert split.requests == pytest.approx(truth.requests, abs=30)
    assert split.queue_ms == pytest.approx(truth.queue_ms, rel=0.03)
    assert split.executions == pytest.approx(truth.executions, abs=30)


def test_a_prometheus_that_does_not_answer_and_a_wrong_selector_are_named(tmp_path: Path) -> None:
    repository = write_config(tmp_path / "models", DEPLOYED, "bert").parent
    options = ObserveOptions(prometheus="http://127.0.0.1:1", repository=repository)
    with pytest.raises(RunError, match="cannot query http://127"):
        observe_production(options)
    with pytest.raises(UsageError, match=r"--repository: .*nowhere must be a model repository"):
        observe_production(replace(options, repository=tmp_path / "nowhere"))
    for selector in ("job", 'job="a"}', 'job="a" or vector(1)'):
        with pytest.raises(UsageError, match="--selector: must be matchers"):
            replace(options, selector=selector)
    with pytest.raises(UsageError, match="or --prometheus"):
        replace(options, sources=("a:1",))
