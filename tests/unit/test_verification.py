"""What `verify` makes of a bundle; on a server that is made up. tests/e2e has a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from optimizer.commands import verify as verifying
from optimizer.commands.bundle_serving import BundleHost, bundle_host
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.errors import (
    ChangedRequestsError,
    EngineMismatch,
    LoadTestFailure,
    ModelLoadFailure,
    RequirementError,
    ServerFailure,
    UsageError,
    VoidLevelFailure,
)
from optimizer.export.bundle.checks import (
    capacity_departure,
    check_capacity,
    check_configuration,
    check_files,
    check_limit,
    check_outputs,
    how_to_rebuild,
    rebuilt_engines,
)
from optimizer.export.bundle.config_fields import measured_config
from optimizer.export.bundle.examples import draw_requests, read_examples, write_examples
from optimizer.export.bundle.manifest import LOAD, MANIFEST, Bundle, Manifest, read_bundle
from optimizer.machine.slots import Slot
from optimizer.measurement.level import LoadLevel
from optimizer.workload.model_spec import AccuracyLimits
from optimizer.workload.streams import Payloads, Tensors, TensorSpec
from tests.unit.commands import Commands
from tests.unit.exported import Exportable, signed
from tests.unit.studies import level, measured
from tests.unit.test_model_config import PAYLOADS

pytestmark = pytest.mark.usefixtures("fast_disk")
TOLERANCE = AccuracyLimits(0.99, 0.99)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Exportable(tmp_path / "study").export(tmp_path / "bundle")


# Files


@pytest.mark.parametrize("name", ["bert/1/model.bin", "bert/config.pbtxt", "further"])
def test_a_pipe_in_place_of_a_file_is_said_and_never_waited_for(bundle: Bundle, name: str) -> None:
    path = bundle.root / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    check = check_files(bundle)
    assert check.outcome == "fail"
    said = "was not exported" if name == "further" else "is a pipe or a device"
    assert f"{name} {said}" in check.text


@pytest.mark.parametrize("name", [MANIFEST, LOAD])
def test_a_bundle_whose_own_files_are_pipes_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.root / name).unlink()
    os.mkfifo(bundle.root / name)
    with pytest.raises(UsageError, match=rf"{name} must be a regular file, not a pipe"):
        read_bundle(bundle.root)
    with pytest.raises(UsageError, match="not a pipe"):
        read_examples(bundle.root / name, batched=True)


@pytest.mark.parametrize("name", ["..", "../../home", "/etc", ".hidden", "a\0b"])
def test_a_bundle_whose_models_lead_out_of_it_is_refused(bundle: Bundle, name: str) -> None:
    path = bundle.root / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["config"]["models"][0]["name"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="a model's name must be the name of a folder"):
        read_bundle(bundle.root)


def test_files_that_are_those_that_were_exported_pass(bundle: Bundle) -> None:
    check = check_files(bundle)
    assert (check.outcome, check.text) == ("pass", "8 files are those that were exported")


def test_every_kind_of_damage_is_named(bundle: Bundle) -> None:
    (bundle.root / "bert/1/model.bin").write_bytes(b"weights int9")
    (bundle.root / "requirements.txt").unlink()
    (bundle.root / "bert/2").mkdir()
    (bundle.root / "bert/2/model.py").touch()
    check = check_files(bundle)
    assert check.outcome == "fail"
    assert check.text == (
        "bert/1/model.bin differs; requirements.txt is missing; bert/2/model.py was not exported"
    )


def test_what_python_has_compiled_and_would_run_in_place_of_a_file_is_damage(
    bundle: Bundle,
) -> None:
    compiled = bundle.root / "bert" / "1" / "__pycache__"
    compiled.mkdir()
    (compiled / "session.cpython-311.pyc").touch()
    assert check_files(bundle).text == (
        "bert/1/__pycache__/session.cpython-311.pyc was not exported, and Python would run it:"
        " delete it"
    )


def test_links_and_empty_folders_are_damage(bundle: Bundle, tmp_path: Path) -> None:
    weights = bundle.root / "bert/1/model.bin"
    elsewhere = Path(shutil.move(weights, tmp_path / "elsewhere.bin"))
    weights.symlink_to(elsewhere)
    (bundle.root / "bert/2").mkdir()
    (tmp_path / "another" / "1").mkdir(parents=True)
    (tmp_path / "another" / "1" / "model.py").touch()
    (bundle.root / "another").symlink_to(tmp_path / "another")
    assert check_files(bundle).text == (
        "bert/1/model.bin is a link; another was not exported; bert/2/ was not exported"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(models=[]), "models must be the models of config, bert"),
        (
            lambda m: m["models"][0].update(examples="../../elsewhere.npz"),
            "models.bert.examples: must be bert/examples.npz or none",
        ),
        (lambda m: m["config"]["models"][0].update(name=".."), "the name of a folder, got '..'"),
        (lambda m: m["config"]["models"][0].update(name=""), "the name of a folder, got ''"),
        (
            lambda m: m["config"]["models"][0].update(name="/etc"),
            "the name of a folder, got '/etc'",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_or_leads_elsewhere_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    manifest = json.loads((bundle.root / MANIFEST).read_text())
    change(manifest)
    (bundle.root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=re.escape(reason)):
        read_bundle(bundle.root)


def test_of_much_damage_some_is_named_and_the_rest_counted(bundle: Bundle) -> None:
    for number in range(9):
        (bundle.root / f"stray{number}").touch()
    assert check_files(bundle).text.endswith("stray4 was not exported; and 4 more")


def test_a_configuration_that_was_edited_says_what_that_changes(bundle: Bundle) -> None:
    path = bundle.root / "bert" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 1\n", "max_batch_size: 9\n"))
    assert check_files(bundle).text == (
        "bert/config.pbtxt differs; bert: max_batch_size: measured 1, the file says 9"
    )
    path.write_text("no configuration")
    assert "bert/config.pbtxt cannot be read" in check_files(bundle).text


# Configuration, outputs


def test_what_runs_is_held_against_what_was_measured(bundle: Bundle) -> None:
    running = measured_config(bundle.manifest.models[0])
    assert check_configuration(bundle.manifest, {"bert": running}).outcome == "pass"
    running.instance_group[0].count = 5
    check = check_configuration(bundle.manifest, {"bert": running})
    assert (check.outcome, check.text) == (
        "fail", "bert: instance_group[0].count: requested 1, the server runs 5",
    )  # fmt: skip


def test_a_manifest_whose_configuration_is_none_is_named(bundle: Bundle) -> None:
    model = replace(bundle.manifest.models[0], config={"no": "field"})
    with pytest.raises(UsageError, match=r"manifest\.json: models\.bert\.config"):
        measured_config(model)


ANSWERS = np.random.default_rng(0).normal(size=(16, 3))


def written_examples(folder: Path) -> Path:
    path = folder / "examples.npz"
    write_examples(path, draw_requests(PAYLOADS), {"logits": ANSWERS}, batched=True)
    return path


def test_examples_come_back_as_they_were_recorded(tmp_path: Path) -> None:
    examples = read_examples(written_examples(tmp_path), batched=True)
    assert examples.outputs.keys() == {"logits"}
    np.testing.assert_array_equal(examples.outputs["logits"], ANSWERS)
    for given, read in zip(draw_requests(PAYLOADS), examples.requests, strict=True):
        assert given.keys() == read.keys()
        for name, values in given.items():
            assert values.dtype == read[name].dtype
            np.testing.assert_array_equal(values, read[name])
    assert written_examples(tmp_path).read_bytes() == written_examples(tmp_path).read_bytes()


def test_examples_without_a_batch_axis_come_back_too(tmp_path: Path) -> None:
    tensors = (
        TensorSpec("rate", "INT32", (), choices=(8000, 16000)),
        TensorSpec("name", "BYTES", (), choices=("one", "two")),
        TensorSpec("samples", "BF16", (3,), -1, 1),
    )
    requests = draw_requests(Payloads(tensors, batched=False))
    answers: Tensors = {"y": ANSWERS, "text": np.array([b"%d" % n for n in range(16)], object)}
    path = tmp_path / "examples.npz"
    write_examples(path, requests, answers, batched=False)
    examples = read_examples(path, batched=False)
    for given, read in zip(requests, examples.requests, strict=True):
        assert given.keys() == read.keys()
        for name, values in given.items():
            assert isinstance(read[name], np.ndarray), "as the client of Triton needs it"
            assert (values.dtype, values.shape) == (read[name].dtype, read[name].shape)
            np.testing.assert_array_equal(values, read[name])
    limits = AccuracyLimits(1.0, 1.0 - 1e-12)
    assert examples.misses(answers, limits) == []
    wrong = examples.misses({**answers, "text": answers["text"][::-1]}, limits)
    assert wrong[0] == "output 'text': argmax agreement must be at least 1, got 0.0000"
    assert examples.misses({"y": ANSWERS}, limits) == ["the served model has no output 'text'"]


def test_what_would_be_executed_when_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    values = np.array([{"a": 1}], dtype=object)
    np.savez(path, **{"input:x": values, "output:y": values})
    with pytest.raises(UsageError, match="contains no recorded examples"):
        read_examples(path, batched=True)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_damaged_examples_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "examples.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"examples\.npz contains no recorded examples"):
        read_examples(path, batched=True)


@pytest.mark.parametrize("rows", [(0, 0), (2, 3)])
def test_examples_must_be_some_and_each_have_an_answer(
    tmp_path: Path, rows: tuple[int, int]
) -> None:
    path = tmp_path / "examples.npz"
    inputs, answers = rows
    np.savez(path, **{"input:x": np.ones((inputs, 4)), "output:y": np.ones((answers, 3))})
    with pytest.raises(UsageError, match="arrays must have one number of rows, at least 1"):
        read_examples(path, batched=True)


def outputs(manifest: Manifest, folder: Path, answers: NDArray[Any]) -> tuple[str, str]:
    examples = {"bert": read_examples(written_examples(folder), batched=True)}
    check = check_outputs(manifest, examples, {"bert": {"logits": answers}})
    return check.outcome, check.text


def test_outputs_are_held_to_the_accuracy_limits(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    assert outputs(manifest, tmp_path, ANSWERS + 1e-4)[0] == "pass"
    outcome, text = outputs(manifest, tmp_path, ANSWERS[::-1])
    assert outcome == "fail"
    assert text.startswith("bert: argmax agreement must be at least 0.99, got ")
    broken = np.where(ANSWERS > 1, np.nan, ANSWERS)
    assert "outputs contain NaN or infinity" in outputs(manifest, tmp_path, broken)[1]
    assert "have shape [16, 2]" in outputs(manifest, tmp_path, ANSWERS[:, :2])[1]


def test_without_recorded_examples_nothing_is_claimed(bundle: Bundle) -> None:
    check = check_outputs(bundle.manifest, {}, {})
    assert check.outcome == "not checked"
    assert check.text == "bert: the bundle has no recorded examples"


# Limit, capacity


def test_the_limit_is_judged_at_the_load_of_one_replica(bundle: Bundle) -> None:
    held = check_limit(bundle.manifest, level(0.2, 80.0))
    assert held.outcome == "pass"
    share = f"{bundle.manifest.recommended.per_replica_per_second:,.0f}/s"
    assert held.text == (
        f"at 100/s (the share of one replica is {share}): p95 of bert 80.0 ms (limit 100 ms)"
    )
    missed = check_limit(bundle.manifest, level(0.2, 130.0))
    assert missed.outcome == "fail"
    assert "p95 of bert 130.0 ms (limit 100 ms)" in missed.text


@pytest.mark.parametrize(
    ("capacity", "off"),
    [(280.0, None), (255.0, None), (305.0, None), (250.0, 250 / 280 - 1), (320.0, 320 / 280 - 1)],
)
def test_a_capacity_is_off_by_more_than_a_tenth(
    bundle: Bundle, capacity: float, off: float | None
) -> None:
    found = capacity_departure(bundle.manifest, measured(capacity), within=0.1)
    assert found == (pytest.approx(off) if off is not None else None)


def test_drift_needs_every_measurement_to_say_so(bundle: Bundle) -> None:
    slow, as_ever = measured(100.0), measured(285.0)
    assert check_capacity(bundle.manifest, [slow, as_ever], 0.1).outcome == "pass"
    check = check_capacity(bundle.manifest, [slow, slow], 0.1)
    assert check.outcome == "drift"
    assert check.text == "100/s, recorded 280/s: -64%, in 2 measurements"


# The command, on a server that is made up


class MadeUp:
    """What a made-up server does with the bundle, and the levels that are run on it.

    Args:
        error: that serving it raises.
        found_error: that measuring the capacity raises.
        void: whether the load generator falls behind at the recommended load.
        p95s_ms: 95th percentiles at the recommended load, one after the other.
        capacities: requests/s that measurements find, one after the other.
        no_requests: that reading the requests to send raises.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        error: Exception | None = None,
        found_error: Exception | None = None,
        void: bool = False,
        p95s_ms: tuple[float, ...] = (60.0,),
        capacities: tuple[float, ...] = (285.0,),
        no_requests: Exception | None = None,
    ) -> None:
        self._config = measured_config(manifest.models[0])
        self._error = error
        self._found_error = found_error
        self._void = void
        self._p95s_ms = iter(p95s_ms)
        self._capacities = iter(capacities)
        self._no_requests = no_requests
        self.levels: list[LoadLevel] = []
        self.served = self.control = self.session = self

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        host = BundleHost(EmbeddedHost(), Slot((0,), (0,)), ())
        monkeypatch.setattr(verifying, "bundle_host", lambda *_: host)
        monkeypatch.setattr(verifying, "served_bundle", self._serving)
        monkeypatch.setattr(verifying, "LoadClient", lambda _: nullcontext())
        for name in ("LevelRunner", "CapacitySearch"):
            monkeypatch.setattr(verifying, name, lambda *_: self)
        monkeypatch.setattr(verifying, "find_capacity", self._found)

    @contextmanager
    def _serving(self, *_: object, **__: object) -> Iterator[MadeUp]:
        if self._error is not None:
            raise self._error
        yield self

    def config(self, _: str) -> model_config_pb2.ModelConfig:
        return self._config

    def version(self) -> str:
        return "9.9.9"

    def failure(self, error: Exception) -> Exception:
        return error

    def on(self, *_: object) -> AbstractContextManager[None]:
        if self._no_requests is not None:
            raise self._no_requests
        return nullcontext()

    def meets_limits(self, load_factor: float, _: float, __: float) -> bool:
        p95_ms = next(self._p95s_ms, None)
        if p95_ms is None:
            raise LoadTestFailure("every request failed")
        found = level(load_factor, p95_ms)
        if self._void:
            found = replace(found, client=replace(found.client, lag_ms=31.8, longest_lag_ms=5.0))
        self.levels.append(found)
        return p95_ms <= 100 and not self._void

    def _found(self, *_: object) -> SimpleNamespace:
        if self._found_error is not None:
            raise self._found_error
        return SimpleNamespace(valid_measurement=measured(next(self._capacities)))


Said = tuple[object, list[str]]


@pytest.fixture
def verify(bundle: Bundle, optimizer: Commands, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(**behaviour: Any) -> Said:
        MadeUp(bundle.manifest, **behaviour).install(monkeypatch)
        said = optimizer("verify", str(bundle.root), "--json", "found.json")
        inside = optimizer("verify", str(bundle.root), "--json", str(bundle.root / "found.json"))
        assert inside.code == 2, "the next time it would be a file that was not exported"
        assert said.err == ""
        return said.code, said.out.splitlines()

    return run


def test_a_bundle_that_is_what_it_was_passes(verify: Any, tmp_path: Path) -> None:
    code, lines = verify()
    assert code == 0
    assert lines[-1] == "pass"
    found = json.loads((tmp_path / "found.json").read_text())
    assert [check["outcome"] for check in found["checks"]] == [
        "pass", "pass", "not checked", "pass", "pass",
    ]  # fmt: skip
    assert found["capacity_per_second"] == pytest.approx(285.0)
    assert "limit: pass, at 250/s (the share of one replica is " in "\n".join(lines)


def test_a_limit_that_is_missed_twice_fails(verify: Any) -> None:
    code, lines = verify(p95s_ms=(130.0, 140.0))
    assert (code, lines[-1]) == (1, "fail")
    assert any("p95 of bert 140.0 ms (limit 100 ms)" in line for line in lines)
    assert "capacity: not checked, the limit is missed at a lower load" in lines


def test_a_machine_that_falters_once_is_forgiven(verify: Any) -> None:
    code, lines = verify(p95s_ms=(130.0, 60.0), capacities=(100.0, 285.0))
    assert (code, lines[-1]) == (0, "pass")
    assert "the capacity differs by -64%" in lines


def test_without_the_measured_requests_no_load_is_measured(verify: Any) -> None:
    code, lines = verify(no_requests=ChangedRequestsError("images: has changed since"))
    assert (code, lines[-1]) == (4, "not measured")
    assert "limit: not measured, images: has changed since" in lines
    assert "capacity: not checked, there are no requests to send" in lines


def test_another_capacity_is_drift(verify: Any) -> None:
    code, lines = verify(capacities=(100.0, 110.0))
    assert (code, lines[-1]) == (5, "drift")
    assert any(line.startswith("capacity: drift, 110/s, recorded 280/s") for line in lines)


def test_a_server_that_dies_under_load_fails_no_bundle(verify: Any) -> None:
    code, lines = verify(p95s_ms=())
    assert (code, lines[-1]) == (4, "not measured")
    assert "limit: not measured, every request failed" in lines
    assert "capacity: not checked, it failed under load" in lines


def test_a_server_that_does_not_start_fails_no_bundle_and_a_model_that_does_not_load_does(
    verify: Any,
) -> None:
    assert verify(error=ServerFailure("the server was not ready within 60 s"))[0] == 4
    assert verify(error=ModelLoadFailure("no such operator"))[0] == 1


def test_a_load_generator_that_falls_behind_is_no_missed_limit(verify: Any) -> None:
    code, lines = verify(void=True, p95s_ms=(60.0, 60.0))
    assert (code, lines[-1]) == (4, "not measured")
    [limit] = [line for line in lines if line.startswith("limit: ")]
    assert limit.startswith("limit: not measured, could not be measured: at ")
    assert "the load generator fell 31.8 ms behind" in limit


def test_a_load_generator_that_falls_behind_is_no_drift(verify: Any) -> None:
    code, lines = verify(found_error=VoidLevelFailure("could not be measured: it fell behind"))
    assert (code, lines[-1]) == (4, "not measured")
    assert any(line.startswith("limit: pass") for line in lines)
    assert "capacity: not measured, could not be measured: it fell behind" in lines


def test_a_damaged_file_starts_nothing(
    bundle: Bundle, optimizer: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "bundle_host", None)
    (bundle.root / "bert/1/model.py").write_text("import os\n")
    said = optimizer("verify", str(bundle.root))
    assert said.code == 1
    assert "files: fail, bert/1/model.py differs" in said.out
    assert said.out.count("not checked, the files are not those that were exported") == 4


def test_no_bundle_is_a_mistake_in_what_was_given(optimizer: Commands, tmp_path: Path) -> None:
    said = optimizer("verify", str(tmp_path))
    assert said.code == 2
    assert "is not an exported bundle" in said.err


def with_engine(bundle: Bundle, **facts: Any) -> Bundle:
    """As if its model were an engine; nothing else of it changes."""
    path = bundle.root / MANIFEST
    manifest = json.loads(path.read_text())
    engine = {"tensorrt": "10.16.1.11", "gpu_name": "NVIDIA A10G", "compute_capability": [8, 6]}
    manifest["models"][0] |= {"engine": engine, **facts}
    path.write_text(json.dumps(manifest))
    return signed(bundle.root)


@pytest.mark.parametrize(
    ("graph", "remedy"),
    [
        ("bert/graph", "`python3 rebuild_engines.py` in the bundle rebuilds it"),
        (None, "does not contain the graph that the engine was built from: export it again"),
    ],
)
def test_an_engine_of_another_gpu_says_how_it_is_built_anew(
    bundle: Bundle, verify: Any, graph: str | None, remedy: str
) -> None:
    with_engine(bundle, graph=graph)
    code, lines = verify(error=EngineMismatch("built for NVIDIA A10G, the server has NVIDIA L4"))
    assert code == 1
    [line] = [line for line in lines if line.startswith("configuration: fail")]
    assert "built for NVIDIA A10G, the server has NVIDIA L4" in line
    assert remedy in line


def test_an_engine_that_was_built_anew_is_told(bundle: Bundle, verify: Any) -> None:
    assert how_to_rebuild(bundle.manifest) is None
    manifest = with_engine(bundle, rebuilt=True).manifest
    assert rebuilt_engines(manifest) == [
        "bert: its engine was rebuilt with TensorRT 10.16.1.11 for NVIDIA A10G"
    ]
    code, lines = verify()
    assert code == 0
    assert "note: bert: its engine was rebuilt with TensorRT 10.16.1.11" in "\n".join(lines)


def test_gpus_are_the_first_of_this_machine_as_many_as_are_used(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    [model] = bundle.manifest.config.models
    on_gpus = replace(
        bundle.manifest.config,
        models=(
            replace(
                model,
                artifact=replace(model.artifact, runtime="tensorrt", backend="tensorrt"),
                groups=(replace(model.groups[0], kind="KIND_GPU", logical_gpus=(0, 1)),),
            ),
        ),
    )
    cards = tuple(Gpu(f"GPU-{n}", "NVIDIA L4", (8, 9), 23000) for n in range(3))
    there = cards
    monkeypatch.setattr("optimizer.commands.bundle_serving.present_gpus", lambda: there)
    monkeypatch.setattr("optimizer.commands.bundle_serving.require_server", lambda *_: "it")
    settings = {"launcher": "docker", "image": "triton:26.05"}
    where = bundle_host(settings, on_gpus)
    assert where.gpus == cards[:2]
    assert where.slot.gpu_uuids == ("GPU-0", "GPU-1")
    there = cards[:1]
    with pytest.raises(
        RequirementError, match="needs 2 GPUs, and the NVIDIA driver of this machine lists"
    ):
        bundle_host(settings, on_gpus)
