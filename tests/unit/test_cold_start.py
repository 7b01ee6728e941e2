"""Cold starts: what is started, what is kept of it, and what reports, plans and exports say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2

from optimizer.analysis.study_reading import read_study
from optimizer.commands.observations import by_search
from optimizer.commands.plan import PlanOptions, plan_for
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    ModelServing,
    ServerOptions,
    ServingConfig,
)
from optimizer.errors import DamagedStudyError, LoadTestFailure
from optimizer.export.bundle.commented_config import commented, origins_in
from optimizer.fleet.planning import fleet_simulation, load_response
from optimizer.load.level_plan import PreparedStream, Target
from optimizer.load.single_requests import latencies_ms
from optimizer.load.transmit import TRANSMITTERS, Done
from optimizer.measurement.resource_use import ClientUse
from optimizer.report.cold_start_tables import cold_start_sentence, cold_start_tables
from optimizer.report.plan_tables import tables
from optimizer.report.study_outcome import StudyOutcome
from optimizer.report.table import Line
from optimizer.search import cold_start as cold_start_module
from optimizer.search.cold_start import with_warmup, without_warmup
from optimizer.study.directory import StudyDirectory
from optimizer.triton.deployed_config import read_deployed, served_text
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import Payloads, TensorSpec
from optimizer.workload.transport import SerialisedRequest
from tests.unit.studies import small_space
from tests.unit.tables import WORKLOAD
from tests.unit.test_planning import searched
from tests.unit.winners import cold_start

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIG = SPACE.config(SPACE.baseline)
DEPLOYED = """# Ours.
name: "m"
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
model_warmup {
  name: "w" batch_size: 1
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } }
}
"""


def test_a_cold_configuration_differs_in_its_warm_up_alone() -> None:
    warm = replace(CONFIG, models=(replace(CONFIG.models[0], warmup_batch_sizes=(1, 8)),))
    cold = without_warmup(warm)
    assert cold.models[0].warmup_batch_sizes == ()
    assert replace(cold.models[0], warmup_batch_sizes=(1, 8)) == warm.models[0]


def test_the_model_answers_the_first_requests_and_not_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = replace(
        CONFIG,
        models=(replace(CONFIG.models[0], cache=True),),
        server=ServerOptions(cache_bytes=2**20),
    )
    evaluator: Any = SimpleNamespace(session=None, levels=None, workload=WORKLOAD)
    timed: list[ServingConfig] = []
    monkeypatch.setattr(
        cold_start_module._ColdStarts,
        "_one_first_request",
        lambda self, warmup, config, size: timed.append(config),
    )
    starts = cold_start_module._ColdStarts(evaluator, cached, 1.0, 100.0)
    assert starts._first_requests({True: cached}) == ()
    assert set(timed) == {CONFIG}


def test_the_warm_up_of_a_deployed_model_is_left_out_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(DEPLOYED)
    spec = ArtifactSpec("m", "repository", "repository", "as_deployed")
    [cold] = without_warmup(ServingConfig((ModelServing("m", spec),))).models
    text, config = served_text(tmp_path, cold)
    _, before = read_deployed(tmp_path)
    assert not config.model_warmup
    assert text.startswith("# Ours.")
    del before.model_warmup[:]
    assert config == before


def test_a_deployed_model_without_warm_up_is_measured_with_one_too(tmp_path: Path) -> None:
    bare = DEPLOYED.partition("model_warmup")[0]
    (tmp_path / "config.pbtxt").write_text(bare)
    spec = ArtifactSpec("m", "repository", "repository", "as_deployed")
    model = ModelServing("m", spec, max_batch_size=4, warmup_batch_sizes=(1, 4))
    payloads = Payloads((TensorSpec("x", "FP32", (2,)),))
    warm = with_warmup(ServingConfig((model,)), {"m": ModelFiles(tmp_path, payloads, ())})
    assert warm is not None
    text, config = served_text(tmp_path, warm.models[0])
    assert text.startswith(bare)
    assert [entry.batch_size for entry in config.model_warmup] == [1, 4]
    assert config.model_warmup[0].inputs["x"].zero_data
    rate = Payloads((TensorSpec("x", "INT32", (1,), choices=(8000, 16000)),))
    assert with_warmup(ServingConfig((model,)), {"m": ModelFiles(tmp_path, rate, ())}) is None


def test_what_was_measured_is_of_the_configuration_alone(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    assert directory.cold_start.read(CONFIG) is None
    written = cold_start(CONFIG, left_out=(2, 4))
    directory.cold_start.write(written)
    assert directory.cold_start.read(CONFIG) == written
    assert directory.cold_start.read(SPACE.config(SPACE.at(5))) is None
    assert directory.cold_start.read(None) is None


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [("load_seconds", -1.0, "load_seconds must be at least 0"), ("loads", "x", "loads")],
)
def test_a_file_that_no_run_has_written_is_refused(
    tmp_path: Path, key: str, value: object, rule: str
) -> None:
    directory = StudyDirectory(tmp_path)
    directory.cold_start.write(cold_start(CONFIG))
    content = json.loads(directory.cold_start.path.read_text())
    content["starts"][0][key] = value
    directory.cold_start.path.write_text(json.dumps(content))
    with pytest.raises(DamagedStudyError, match=rule):
        directory.cold_start.read(CONFIG)


class _Transmitter:
    """Answers from another thread; a request that reaches no model is refused."""

    def __init__(self, error: str | None) -> None:
        self.sent: list[str] = []
        self.closed = False
        self._error = error

    def send(self, request: SerialisedRequest, timeout_seconds: float, done: Done) -> None:
        self.sent.append(request.model)
        error = self._error if request.model == "bert" else "NOT_FOUND: no such model"
        Thread(target=done, args=(error,)).start()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [None, "INTERNAL: broken"])
def test_single_requests_follow_one_that_only_opens_the_connection(
    monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    transmitter = _Transmitter(error)
    monkeypatch.setitem(TRANSMITTERS, "grpc", lambda _: transmitter)
    stream = PreparedStream(WORKLOAD.streams[0], (SerialisedRequest("bert", b""),))
    target = Target("grpc", "127.0.0.1:1", (stream,))
    if error is None:
        assert len(latencies_ms(target, stream, 3, 1.0)) == 3
        assert transmitter.sent == ["no-model", "bert", "bert", "bert"]
    else:
        with pytest.raises(LoadTestFailure, match="bert did not answer: INTERNAL: broken"):
            latencies_ms(target, stream, 3, 1.0)
    assert transmitter.closed


def test_the_conclusion_compares_the_two() -> None:
    assert cold_start_sentence(cold_start(CONFIG)) == (
        "With model_warmup, an instance serves 2.5 s after its server is started (1.5 s of it to "
        "load the models), and the first request takes 4.0 ms; without it, these are 1.5 s and "
        "40.0 ms. Later requests take 3.0 ms."
    )
    alone = cold_start(CONFIG, warmup=False)
    assert cold_start_sentence(alone) == (
        "Without model_warmup, which the configuration does not have, an instance serves 1.5 s "
        "after its server is started (0.5 s of it to load the models), and the first request "
        "takes 40.0 ms. Later requests take 3.0 ms."
    )
    both = cold_start(CONFIG).starts
    assert "takes 40.0 ms; with it, these are 2.5 s and 4.0 ms. Later" in cold_start_sentence(
        replace(alone, starts=both[::-1])
    )
    running = replace(alone, starts=(replace(alone.starts[0], server_seconds=None),))
    assert "the models serve 0.5 s after the request to load them" in cold_start_sentence(running)


def test_tables_have_a_row_for_each_start_and_each_size() -> None:
    starts, first = cold_start_tables(cold_start(CONFIG, left_out=(2, 4)), 60.0)
    assert [row[:4] for row in starts.rows] == [
        ("with model_warmup", "1.00", "1.50", "2.50"),
        ("without model_warmup", "1.00", "0.50", "1.50"),
    ]
    assert [row[-1] for row in starts.rows] == ["84.0", "840.0"]
    assert "Once warm, p99 is 60.0 ms." in starts.notes[0]
    assert first.rows == (("1", "4.0", "40.0", "3.0"), ("8", "32.0", "320.0", "24.0"))
    assert "No time was left for requests of 2, 4." in first.notes


def test_a_load_that_the_client_did_not_send_on_time_is_told() -> None:
    cold = cold_start(CONFIG)
    late = replace(cold.starts[1].level, client=ClientUse(1, 0.0, 0.0, 20.0, longest_lag_ms=5.0))
    starts = (cold.starts[0], replace(cold.starts[1], level=late))
    table, _ = cold_start_tables(replace(cold, starts=starts), None)
    assert "without model_warmup: the load generator fell 20.0 ms behind" in table.notes[-1]


@pytest.mark.slow
def test_the_end_of_a_run_and_the_plan_tell_the_measured_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_response, "_REQUESTS", 20_000)
    monkeypatch.setattr(load_response, "_CAPACITY_REQUESTS", 100_000)
    monkeypatch.setattr(fleet_simulation, "_REQUESTS", 200_000)
    config = searched(tmp_path, "one")
    options = PlanOptions(("one",), results=tmp_path)
    before = plan_for(options).plan
    assert before is not None
    assert (
        "the time to serve the configuration in its trial (one; run --with cold-start"
        in (tables(before, {"one": ""})[0].notes[-1])
    )
    measured = cold_start(config)
    StudyDirectory(tmp_path / "one").cold_start.write(measured)
    planned = plan_for(options)
    assert planned.plan is not None
    [member] = planned.plan.fleet.members
    assert (member.instance.setup_seconds, member.instance.setup_measured) == (2.5, True)
    assert tables(planned.plan, {"one": ""})[0].notes[-1] == (
        "Setup: from the start of the server until its models serve, as measured (one)."
    )
    [entry] = json.loads(planned.data.read_text())["instances"]
    assert entry["setup_seconds"] == 2.5
    study = read_study(tmp_path, "one")
    [best] = study.own_decision.ranking[:1]
    assert study.setup_seconds(best) == 2.5
    own, *_ = by_search("one", study, study.searched.price, study.searched.demand).observations
    assert own.setup_seconds == 2.5
    parts = StudyOutcome(study, None).parts()
    assert Line(cold_start_sentence(measured)) in parts


def test_an_exported_warm_up_has_its_measured_reason() -> None:
    config = model_config_pb2.ModelConfig(name="bert")
    config.model_warmup.add(name="batch of 1", batch_size=1)
    model = CONFIG.models[0]
    reason = "# measured: the first request took 4.0 ms with it, 40.0 ms without it\n"
    assert reason in commented(config, model, origins_in(SPACE, cold_start(CONFIG)))
    assert "measured:" not in commented(config, model, origins_in(SPACE))
