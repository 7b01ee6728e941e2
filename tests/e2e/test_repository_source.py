"""Models of existing repositories on the real server: as people build them, tuned and exported."""

from __future__ import annotations

import difflib
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    ModelServing,
    ServingConfig,
)
from optimizer.load.transmit import TRANSMITTERS
from optimizer.triton.model_config import merge_fields, wrong_field
from optimizer.triton.requests import serialised
from optimizer.triton.session import ModelFiles, ServedConfiguration, ServingSession
from optimizer.workload.data_types import NUMPY_TYPES
from optimizer.workload.streams import Payloads, Tensors
from optimizer.workload.transport import Transport
from tests.e2e import repository_models as models
from tests.e2e import tiny
from tests.e2e.embedded import embedded_session
from tests.e2e.running import run_to_end

pytestmark = pytest.mark.timeout(300)

PINNED = "config.optimization.input_pinned_memory.enable"
TEXTS = ["alpha", "béta", ""]
TEXT_INPUTS = {
    "TEXT": {"data_type": "BYTES", "shape": [1], "values": TEXTS},
    "MASK": {"data_type": "BOOL", "shape": ["marks"]},
}
WIDE_INPUTS = {
    "IMAGE": {"data_type": "FP16", "shape": ["height", "width", 3], "minimum": 0, "maximum": 0.5},
    "BOXES": {"data_type": "FP64", "shape": ["boxes", "corners"], "minimum": -2, "maximum": 2},
    "IDS": {"data_type": "UINT8", "shape": ["words", "letters"], "minimum": 0, "maximum": 250},
}
WIDE_DIMENSIONS = {
    "height": {"uniform": [2, 3]},
    "width": {"of": "height", "times": 2, "plus": 1},
    "boxes": {"uniform": [1, 4]},
    "corners": {"fixed": 4},
    "words": {"of": "boxes"},
    "letters": {"weights": {5: 3, 9: 1}},
}
VOICE_INPUTS = {
    "AUDIO": {"data_type": "FP32", "shape": [1, "samples"], "minimum": -1, "maximum": 1},
    "RATE": {"data_type": "INT64", "shape": [1], "value": 16000},
}
IMAGE_INPUTS = {"IMAGE": {"data_type": "BYTES", "shape": [1]}}
ROUTE_INPUTS = {
    "POINTS": {"data_type": "FP32", "shape": ["points", 2]},
    "NAME": {"data_type": "BYTES", "shape": [1]},
    "DETOUR": {"data_type": "FP64", "shape": [1], "minimum": 1, "maximum": 2},
}
NUMBER_INPUTS = {"X": {"data_type": "FP32", "shape": [4], "minimum": -1, "maximum": 1}}


def model(
    repository: str, name: str, inputs: Mapping[str, Any], version: int | None = None, **keys: Any
) -> dict[str, Any]:
    section: dict[str, Any] = {"repository": repository, "model": name}
    if version is not None:
        section["version"] = version
    return {"source": section, "inputs": dict(inputs), "evaluation": {"samples": 6}, **keys}


def space(
    folder: Path, served: Mapping[str, Any], parameters: Mapping[str, Any], **keys: Any
) -> Path:
    content = {**tiny.space(**keys), "models": dict(served), "parameters": dict(parameters)}
    return tiny.write_space(folder, {**content, "study": "deployed"})


def route(points: int, **form: Any) -> dict[str, Any]:
    """A request of perf_analyzer's data, of which the points are in a given form."""
    content = np.arange(2 * points, dtype=np.float32)
    forms = {
        "list": content.tolist(),
        "shape": {"content": content.tolist(), "shape": [points, 2]},
        "b64": {"b64": b64encode(content.tobytes()).decode()},
    }
    return {"POINTS": forms[form["form"]], "NAME": [f"{points} points"]}


def write_requests(folder: Path) -> None:
    """Write a directory of images, and perf_analyzer's data of routes of two sequences."""
    (folder / "images").mkdir()
    for name, content in models.IMAGE_FILES.items():
        (folder / "images" / name).write_bytes(content)
    streams = [
        [route(2, form="list"), route(3, form="shape")],
        [route(3, form="b64"), route(3, form="list"), route(4, form="b64")],
    ]
    (folder / "routes.json").write_text(json.dumps({"data": streams}))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Models of five kinds on one server, at one rate; two take their requests from files."""
    folder = tmp_path_factory.mktemp("measured")
    repository = folder / "our models-v1.2" / "mail room"
    models.write_texts(repository, "texts-v1.2", versions="2, 3")
    models.write_model(repository, "wide one", models.WIDE, models.WIDE_CODE)
    models.write_model(repository, "voice.activity", models.VOICE, models.VOICE_CODE)
    models.write_model(repository, "images", models.IMAGES, models.IMAGES_CODE)
    models.write_model(repository, "routes", models.ROUTES, models.ROUTES_CODE)
    write_requests(folder)
    at, demand = "our models-v1.2/mail room", {"demand_per_second": 20}
    served = {
        "texts-v1.2": model(
            at, "texts-v1.2", TEXT_INPUTS, 2, dimensions={"marks": {"fixed": 7}}, **demand
        ),
        "wide": model(at, "wide one", WIDE_INPUTS, dimensions=WIDE_DIMENSIONS, **demand),
        "voice.activity": model(
            at,
            "voice.activity",
            VOICE_INPUTS,
            dimensions={"samples": {"fixed": 512}},
            batched=False,
            **demand,
        ),
        "images": model(at, "images", IMAGE_INPUTS, requests="images", **demand),
        "routes": model(at, "routes", ROUTE_INPUTS, requests="routes.json", **demand),
    }
    path = space(folder, served, {})
    optimizer = run_to_end(folder, "measure", path, "--rate", 100, "--set", f"wide.{PINNED}=false")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    [file] = (folder / "results" / "deployed" / "measured").glob("*/measured.json")
    return dict(json.loads(file.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["texts-v1.2", "wide", "voice.activity", "images", "routes"])
def test_every_request_is_one_that_the_model_takes(measured: Mapping[str, Any], name: str) -> None:
    """The models fail on requests of other types, shapes and values."""
    [level] = measured["levels"]
    [stream] = [each for each in level["streams"] if each["name"] == name]
    assert stream["completed"] > 5
    assert (stream["errors"], stream["first_error"]) == (0, None)
    [split] = [each for each in level["server"] if each["model"] == name]
    assert split["requests"] > 5, "of the version that requests name"


@pytest.mark.slow
def test_every_output_is_compared_with_the_server_as_deployed(measured: Mapping[str, Any]) -> None:
    assert {label: row["samples"] for label, row in measured["accuracy"].items()} == {
        "texts-v1.2/repository/as_deployed": 6,
        "wide/repository/as_deployed": 6,
        "voice.activity/repository/as_deployed": 6,
        "images/repository/as_deployed": 6,
        # Of the five routes, three have the most frequent shape.
        "routes/repository/as_deployed": 3,
    }
    assert all(row["max_abs_error"] == 0 for row in measured["accuracy"].values())


@pytest.mark.slow
def test_a_field_is_set_for_one_of_the_models(measured: Mapping[str, Any]) -> None:
    fields = {each["name"]: each["parameters"] for each in measured["config"]["models"]}
    path = PINNED.removeprefix("config.")
    assert fields == {
        "texts-v1.2": [],
        "wide": [[path, "false"]],
        "voice.activity": [],
        "images": [],
        "routes": [],
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSession]:
    with embedded_session(tmp_path_factory.mktemp("server")) as session:
        yield session


def extremes(name: str) -> np.ndarray[Any, Any]:
    """The values of a data type that a conversion on the way would change."""
    if name == "STRING":
        values = np.empty(4, dtype=object)
        values[:] = [b"", b"\x00\xff", "béta".encode(), b"x" * 70_000]
        return values
    dtype = np.dtype(NUMPY_TYPES[name])  # type: ignore[index]
    if dtype == np.bool_:
        return np.array([True, False, False, True])
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return np.array([info.min, info.max, 0, info.max - 1], dtype)
    limits = np.finfo(dtype)
    return np.array([limits.max, limits.smallest_subnormal, -0.0, 1 / 3], dtype)


def test_every_data_type_arrives_as_it_was_sent(session: ServingSession, tmp_path: Path) -> None:
    folder = models.write_model(tmp_path, "echo", models.ECHO, models.ECHO_CODE)
    spec = ArtifactSpec("echo", "repository", "repository", "as_deployed")
    config = ServingConfig((ModelServing("echo", spec),))
    served = session.serve(config, {"echo": ModelFiles(folder, Payloads(()), ())})
    sent = {f"IN_{name}": extremes(name)[None] for name in models.ECHO_TYPES}
    outputs = [f"OUT_{name}" for name in models.ECHO_TYPES]
    answers = served.control.infer("echo", [sent], outputs, 60.0)
    for name in models.ECHO_TYPES:
        got, expected = answers[f"OUT_{name}"], sent[f"IN_{name}"]
        assert got.dtype == expected.dtype, name
        if name == "STRING":
            assert got.tolist() == expected.tolist()
        else:
            assert got.tobytes() == expected.tobytes(), name


X: Tensors = {"X": np.ones((1, 4), np.float32)}


def serve_number(
    session: ServingSession,
    folder: Path,
    code: str,
    *,
    config: str = models.NUMBER,
    version: str = "",
    **serving: Any,
) -> ServedConfiguration:
    """Serve a model in three versions, and return what serves it."""
    folder = models.write_model(folder, "number", config, code, (1, 2, 3))
    spec = ArtifactSpec("number", "repository", "repository", "as_deployed")
    served = ModelServing("number", spec, 8, **serving)
    files = ModelFiles(folder, Payloads(()), (), version=version)
    return session.serve(ServingConfig((served,)), {"number": files})


@pytest.mark.parametrize(("version", "answer"), [("2", 2), ("", 3)])
def test_requests_and_counters_are_of_one_version(
    session: ServingSession, tmp_path: Path, version: str, answer: int
) -> None:
    every = models.NUMBER + "version_policy { all { } }\n"
    served = serve_number(session, tmp_path, models.VERSION_CODE, config=every, version=version)
    control, before = served.control, served.control.statistics("number")
    assert before.version == str(answer)
    assert control.infer("number", [X], ["Y"], 60.0)["Y"].tolist() == [[answer] * 4]
    assert control.error_of_one_request("number", X, 60.0) is None
    addresses = {"grpc": served.server.endpoint.grpc, "http": served.server.endpoint.http}
    for protocol, transmitter in TRANSMITTERS.items():
        sending, replies = transmitter(addresses[protocol]), SimpleQueue[str | None]()
        with serialised(control, "number", [X], Transport(protocol)) as [request]:  # type: ignore[arg-type]
            sending.send(request, 60.0, replies.put)
            assert replies.get(timeout=60.0) is None
        sending.close()
    assert control.executed_since(before, 4).requests == 4


QUEUES = {
    "dynamic_batching.priority_levels": 2,
    "dynamic_batching.default_priority_level": 1,
    "dynamic_batching.default_queue_policy.timeout_action": "DELAY",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": 90_000_000,
    "dynamic_batching.default_queue_policy.allow_timeout_override": True,
    "dynamic_batching.priority_queue_policy.2.max_queue_size": 50,
}
ORDERED = {
    "dynamic_batching.preserve_ordering": True,  # which excludes several priorities
    "optimization.input_pinned_memory.enable": False,
    "parameters.greeting.string_value": "",
}


@pytest.mark.parametrize("fields", [QUEUES, ORDERED], ids=["queues", "ordered"])
def test_every_field_of_the_batcher_is_served(
    session: ServingSession, tmp_path: Path, fields: Mapping[str, Any]
) -> None:
    """The session compares what is requested with what the server runs, `false` and "" too."""
    assert [wrong_field(path, value) for path, value in fields.items()] == [None] * len(fields)
    parameters = tuple((path, json.dumps(value)) for path, value in fields.items())
    batching = Batching((2, 4), 300)
    served = serve_number(
        session, tmp_path, models.VERSION_CODE, batching=batching, parameters=parameters
    )
    running = served.control.config("number")
    requested = ModelConfig()
    requested.CopyFrom(running)
    merge_fields(requested, parameters)
    assert requested == running
    assert served.control.infer("number", [X, X], ["Y"], 60.0)["Y"].tolist() == [[3] * 4] * 2


@pytest.mark.slow
def test_batches_that_are_answered_wrong_leave_the_space(tmp_path: Path) -> None:
    models.write_model(tmp_path, "number", models.NUMBER, models.WRONG_ROWS_CODE)
    path = space(
        tmp_path,
        {"number": model(".", "number", NUMBER_INPUTS)},
        {"batching": [True, False], "max_batch_size": [4, 8]},
        budget={"trials": 2},
    )
    optimizer = run_to_end(tmp_path, "run", path, "--sampler", "grid")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    results = tmp_path / "results" / "deployed"
    [row] = json.loads((results / "prepared.json").read_text())["artifacts"]
    assert row["dropped"] is None
    assert row["failing_batch"]["size"] == 4, "the smallest of the space"
    assert "the first for request 2" in row["failing_batch"]["reason"]
    assert "number/repository/as_deployed: configurations with a max_batch_size of 4" in (
        optimizer.output
    )
    trials = [json.loads(file.read_text()) for file in (results / "trials").glob("*.json")]
    assert [t["config"]["models"][0]["batching"] for t in trials] == [None]


@pytest.mark.slow
def test_a_model_that_batches_make_slower_is_recommended_without(tmp_path: Path) -> None:
    models.write_model(tmp_path, "number", models.NUMBER, models.SLOW_BATCHES_CODE)
    path = space(
        tmp_path,
        {"number": model(".", "number", NUMBER_INPUTS)},
        {"batching": [True, False], "max_queue_delay_microseconds": [5000]},
        traffic={"demand_per_second": 400},
        limit={"latency_ms": 300},
        budget={"trials": 4},
    )
    optimizer = run_to_end(tmp_path, "run", path, "--sampler", "grid")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    assert "Serve as deployed, no batching, 1 instance" in optimizer.output


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of a deployed model, and its baseline's rival in `bundle`.

    The texts of its requests are in a file.
    """
    folder = tmp_path_factory.mktemp("exported")
    lines = [json.dumps({"TEXT": [text]}) for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    inputs = {
        "TEXT": {"data_type": "BYTES", "shape": [1]},
        "MASK": {"data_type": "BOOL", "shape": ["marks"], "values": [False, True]},
    }
    models.write_texts(folder / "models", "texts-v1.2")
    path = space(
        folder,
        {
            "texts-v1.2": model(
                "models",
                "texts-v1.2",
                inputs,
                requests="texts.jsonl",
                dimensions={"marks": {"fixed": 7}},
            )
        },
        {"batching": [True], "instance_count": [2], PINNED: [False]},
        budget={"trials": 3},
    )
    for _ in range(2):  # the second resumes the study
        optimizer = run_to_end(folder, "run", path, "--sampler", "grid", "--trials", 3)
        assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    trials = (folder / "results" / "deployed" / "trials").glob("*.json")
    assert len(list(trials)) >= 3
    optimizer = run_to_end(folder, "export", "deployed", "--to", folder / "bundle")
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
    return folder


@pytest.mark.slow
def test_only_searched_fields_differ_in_what_is_exported(exported: Path) -> None:
    base = (exported / "models" / "texts-v1.2" / "config.pbtxt").read_text()
    text = (exported / "bundle" / "texts-v1.2" / "config.pbtxt").read_text()
    changes = difflib.ndiff(base.splitlines(), text.splitlines())
    removed = [line for line in changes if line.startswith("- ")]
    assert all("instance_group" in line for line in removed), removed
    config = text_format.Parse(text, ModelConfig())
    for field in ("dynamic_batching", "instance_group", "optimization"):
        config.ClearField(field)
    expected = text_format.Parse(base, ModelConfig())
    expected.ClearField("instance_group")
    assert config == expected


@pytest.mark.slow
def test_every_other_file_is_the_owners_byte_for_byte(exported: Path) -> None:
    base, bundle = exported / "models" / "texts-v1.2", exported / "bundle" / "texts-v1.2"
    files = [path.relative_to(base) for path in base.rglob("*") if path.is_file()]
    assert len(files) == 5
    for file in files:
        if file.name != "config.pbtxt":
            assert (bundle / file).read_bytes() == (base / file).read_bytes()
    added = {p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file()} - {*files}
    assert added == {Path("examples.npz")}


@pytest.mark.slow
def test_the_exported_model_is_verified(exported: Path) -> None:
    optimizer = run_to_end(exported, "verify", exported / "bundle", "--allow-code")
    checks = optimizer.output
    assert optimizer.process.returncode in (0, 1, 5), checks + optimizer.errors
    for name in ("files", "configuration", "outputs"):
        assert f"\n{name}: pass, " in f"\n{checks}", checks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        (models.NUMBER.replace('"python"', '"onnxruntime"'), 3, "has no backend 'onnxruntime'"),
        ("", 2, "config.pbtxt is missing, and the server does not complete input, output"),
        (models.NUMBER + "sequence_batching { }", 2, "sequence_batching: requests of a stateful"),
        (models.NUMBER.replace("FP32 dims: [ 4 ]", "FP16 dims: [ 4 ]", 1), 2, "takes FP16, got"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, config: str, code: int, message: str
) -> None:
    folder = models.write_model(tmp_path, "number", config, models.SLOW_BATCHES_CODE)
    if not config:
        (folder / "config.pbtxt").unlink()
    path = space(tmp_path, {"number": model(".", "number", NUMBER_INPUTS)}, {})
    optimizer = run_to_end(tmp_path, "measure", path, "--rate", 5)
    assert optimizer.process.returncode == code, optimizer.output
    assert message in optimizer.errors
    assert "Traceback" not in optimizer.errors


@pytest.mark.slow
def test_a_version_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path, "number", models.NUMBER, models.SLOW_BATCHES_CODE)
    shutil.move(folder / "1", tmp_path / "release")
    (folder / "1").symlink_to(tmp_path / "release")
    path = space(tmp_path, {"number": model(".", "number", NUMBER_INPUTS)}, {})
    optimizer = run_to_end(tmp_path, "measure", path, "--rate", 100)
    assert optimizer.process.returncode == 0, optimizer.output + optimizer.errors
