"""A search from end to end: what it leaves, what a second run does, and what best/ serves."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from optimizer.analysis.study_status import study_status
from optimizer.artifacts.accuracy import compare, misses
from optimizer.commands.dashboard import note_of_study
from optimizer.configuration.serving_config import describe
from optimizer.study.directory import StudyDirectory
from optimizer.study.optuna_storage import open_storage
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.launcher import free_ports
from optimizer.triton.repository import read_config
from optimizer.workload.model_spec import AccuracyLimits
from tests.e2e import tiny
from tests.e2e.conftest import Built, StartOptimizer
from tests.e2e.running import Marked, Optimizer, wait_until

pytestmark = pytest.mark.timeout(300)

TRIALS = 2
SPACE = tiny.space(
    parameters={
        "runtime": ["onnxruntime", "openvino"],
        "precision": ["fp32", "int8"],
        "max_batch_size": [4, 8],
    },
    budget={"trials": TRIALS},
)


@dataclass(frozen=True)
class Finished:
    """A search of two trials that was run to its end by the command line."""

    folder: Path
    space: Path
    code: int
    output: str
    errors: str

    @property
    def study(self) -> StudyDirectory:
        return StudyDirectory(self.folder / "results" / "tiny")

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.study.read_json(self.study.summary))


@pytest.fixture(scope="module")
def finished(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("a search")
    space = tiny.write_space(folder, SPACE)
    # At random, so that both are measured: a guided search may know enough before.
    arguments = ["run", space, "--cache", built.cache, "--sampler", "random"]
    optimizer = Optimizer(arguments, folder)
    try:
        code = optimizer.wait()
    finally:
        optimizer.end()
    return Finished(folder, space, code, optimizer.output, optimizer.errors)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """The finished study, copied to where `start` works."""
    shutil.copytree(finished.folder / "results", tmp_path / "results", symlinks=True)
    return finished.space


def test_a_search_ends_well_and_says_nothing_on_stderr(finished: Finished) -> None:
    assert finished.code == 0, finished.errors
    assert finished.errors == ""


def test_the_output_is_plain_lines_when_nobody_watches(finished: Finished) -> None:
    assert "\x1b" not in finished.output
    lines = finished.output.splitlines()
    assert "prepare: up to 4 steps" in lines
    for number in range(1, TRIALS + 1):
        assert any(line.startswith(f"  {number}/{TRIALS} ") for line in lines)
    for text in (
        "Trials",
        "The best and what it is compared with",
        "baseline",
        "model repository: ",
    ):
        assert text in finished.output
    assert str(finished.study.best) in finished.output


def test_summary_json_holds_what_it_must(finished: Finished) -> None:
    summary = finished.summary
    assert summary["study"] == "tiny"
    assert summary["outcome"] == "found"
    assert summary["trials"].keys() == {"ok", "infeasible", "bounded", "failed"}
    assert sum(summary["trials"].values()) == TRIALS
    for name in ("wall_seconds", "measuring_seconds", "building_seconds"):
        assert isinstance(summary[name], float | int), name
    assert 0 < summary["measuring_seconds"] < summary["wall_seconds"]
    for entry in (summary["best"], summary["baseline"]):
        assert entry["latency_ms"].keys() == {"p50", "p95", "p99"}
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert entry["latency_ms"]["p95"] <= entry["latency_ms"]["p99"]
        assert entry["capacity_per_second"] > 0
        per_million = 0.36 / (entry["capacity_per_second"] * 3600) * 1e6
        assert entry["usd_per_million_at_capacity"] == pytest.approx(per_million)
        assert isinstance(entry["replicas"], int)
        assert entry["fleet_usd_per_hour"] == pytest.approx(0.36 * entry["replicas"])
        at_demand = entry["fleet_usd_per_hour"] / (200 * 3600) * 1e6
        assert entry["usd_per_million_at_demand"] == pytest.approx(at_demand)
        assert entry["config"]["models"][0]["name"] == "bert"
    machine = summary["machine"]
    assert machine["server_cores"]
    assert machine["client_cores"]
    shared = set(machine["server_cores"]) & set(machine["client_cores"])
    assert machine["cores_separated"] == (not shared)
    rivals = [claim["rival"] for claim in summary["claims"]]
    assert len(rivals) == len(set(rivals)) >= 1
    assert summary["best"]["description"] not in rivals
    for claim in summary["claims"]:
        assert 0 < claim["capacity_ratio_low"] < claim["capacity_ratio"]
        assert claim["capacity_ratio"] < claim["capacity_ratio_high"]
        assert 0 <= claim["confidence"] <= 1
    # Its own trial, and both rounds of the confirm phase.
    assert len(summary["pace"]["saturation_per_second"]) == 3
    assert min(summary["pace"]["saturation_per_second"]) > 0


def test_the_winner_costs_no_more_than_the_baseline(finished: Finished) -> None:
    best, baseline = finished.summary["best"], finished.summary["baseline"]
    assert best["fleet_usd_per_hour"] <= baseline["fleet_usd_per_hour"]


def test_a_full_cache_builds_nothing(finished: Finished) -> None:
    assert finished.summary["building_seconds"] == 0


def test_every_trial_is_on_disk_and_the_baseline_came_first(finished: Finished) -> None:
    records = list(finished.study.trials.read_all().values())
    assert len(records) == TRIALS
    assert len({record.config for record in records}) == TRIALS
    assert describe(records[0].config) == "onnxruntime fp32, no batching, 1 x 1 thread"
    for record in records:
        assert record.outcome in ("ok", "bounded"), record.reason
        assert record.measurement is not None
        assert record.seconds.total >= record.seconds.measuring > 0
        assert record.seconds.serving > 0
        assert all(level.server for level in record.measurement.levels)
    for again in finished.study.confirmations.read_all().values():
        assert again.measurement is not None
        kinds = [level.kind for level in again.measurement.levels]
        assert kinds == ["saturation", *["open_loop"] * (len(kinds) - 1)]
    assert (finished.study.root / "logs" / "server.log").stat().st_size > 0


def test_the_log_has_every_step_with_its_time(finished: Finished) -> None:
    lines = finished.study.run_log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d ", line) for line in lines)
    said = [line[26:] for line in lines]
    assert (said[0], said[-1]) == ("-- run started", "-- run done")
    assert "      loading the model" in said
    assert sum(line.startswith("      saturating for ") for line in said) >= TRIALS
    assert {line for line in finished.output.splitlines() if line.startswith("    ok: ")} <= {*said}


def test_where_it_stands_is_known_after_it(finished: Finished) -> None:
    status = study_status(finished.folder / "results", "tiny")
    assert status.state == "done"
    assert sum(status.trials.values()) == TRIALS
    assert status.best is not None
    told = json.loads(json.dumps(status.to_json()))
    assert told["confirmed"] == finished.summary["best"]
    assert status.progress is not None
    assert status.progress.phase == "confirm"
    assert len(status.progress.capacities) == TRIALS


def test_each_trial_keeps_what_it_was_served_with(finished: Finished) -> None:
    storage = open_storage(finished.study.journal, None)
    study = optuna.load_study(study_name="tiny", storage=storage)
    for record in finished.study.trials.read_all().values():
        [kept] = optuna.artifacts.get_all_artifact_meta(
            study.trials[record.number], storage=storage
        )
        assert kept.filename == "config.pbtxt"
        config = read_config(finished.study.artifacts / kept.artifact_id)
        assert config.max_batch_size == record.config.models[0].max_batch_size


def test_the_note_says_what_the_study_came_to(finished: Finished) -> None:
    note = note_of_study(finished.study)
    assert "**ended: " in note
    assert "best, confirmed" in note


def test_the_same_command_again_measures_nothing(
    copied: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    study = StudyDirectory(tmp_path / "results" / "tiny")
    before = _state(study.root)
    again = start(copied)
    assert again.wait() == 0, again.errors
    assert "Study tiny is finished" in again.output
    assert "Trials" in again.output
    assert _state(study.root) == before


def _state(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file, but for the lease, which is another in each run."""
    files = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "lease")
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


@pytest.mark.slow
def test_more_trials_go_on_in_a_live_view_that_leaves_the_terminal_usable(
    copied: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    study = StudyDirectory(tmp_path / "results" / "tiny")
    before = {name: state for name, state in _state(study.root).items() if "trials/" in name}
    with Terminal() as terminal:
        more = start(copied, "--trials", TRIALS + 1, terminal=terminal.inner)
        assert more.wait() == 0
        assert terminal.settings == terminal.settings_before
    [reference] = study.drift_runs.read_all().values()
    assert reference.measurement is not None, reference.reason
    assert [level.kind for level in reference.measurement.levels] == ["saturation"]
    screen = terminal.output
    assert "triton cost optimizer" in screen, "the live view"
    assert "now" in screen
    assert screen.count("\x1b[?25l") > 0, "the cursor is hidden"
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), "and shown again"
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen[screen.rindex("\x1b[?25h") :])
    assert "Trials" in last
    assert "model repository: " in last
    assert f"{TRIALS + 1} ok" in last or "pruned" in last
    records = study.trials.read_all()
    assert len(records) == TRIALS + 1
    after = _state(study.root)
    assert {name: after[name] for name in before} == before, "earlier records are as they were"


class Terminal:
    """A pseudo-terminal whose output is read until it closes."""

    def __enter__(self) -> Terminal:
        self._outer, self.inner = pty.openpty()
        termios.tcsetwinsize(self.inner, (40, 150))
        self.settings_before = termios.tcgetattr(self.inner)
        self._read = bytearray()
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()
        return self

    def _drain(self) -> None:
        try:
            while data := os.read(self._outer, 65536):
                self._read += data
        except OSError:
            pass  # the other end is closed

    @property
    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.inner)

    @property
    def output(self) -> str:
        return self._read.decode(errors="replace")

    def __exit__(self, *_: object) -> None:
        os.close(self.inner)
        self._reader.join(10.0)
        os.close(self._outer)


@pytest.fixture
def fresh_server(finished: Finished, tmp_path: Path) -> Iterator[ServerControl]:
    """A tritonserver that nothing of ours started, over best/ as its README says."""
    best = tmp_path / "moved-elsewhere"
    shutil.copytree(finished.study.best, best)
    runtime = find_embedded_runtime()
    grpc, http, metrics = free_ports(3)
    marked = Marked()
    [command] = re.findall(r"^    (tritonserver .*)$", (best / "README.md").read_text(), re.M)
    program, *options = shlex.split(command.replace("$PWD", str(best)))
    assert program == runtime.binary.name
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                runtime.binary,
                *options,
                # Where it listens, and where this machine's Python backend lies.
                f"--backend-directory={runtime.lay_out(tmp_path / 'backends')}",
                *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
                *("--http-address=127.0.0.1", f"--http-port={http}"),
                *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
            ],
            env={**os.environ, **dict(runtime.environment), **marked.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        endpoint = Endpoint(*(f"127.0.0.1:{port}" for port in (grpc, http, metrics)))
        with ServerControl(endpoint) as control:
            wait_until(control.ready, "a server over best/")
            yield control
    finally:
        server.terminate()
        server.wait(30)
        marked.end()


def test_best_is_served_by_a_fresh_server_as_accurately_as_the_gate_demands(
    finished: Finished, built: Built, fresh_server: ServerControl
) -> None:
    asked = finished.summary["best"]["config"]["models"][0]
    assert not any(path.is_symlink() for path in finished.study.best.rglob("*"))
    running = fresh_server.config("bert")
    assert running.max_batch_size == asked["max_batch_size"]
    assert running.HasField("dynamic_batching") == (asked["batching"] is not None)
    answers = fresh_server.infer("bert", built.evaluation, ["logits"], 60.0)
    limits = AccuracyLimits(min_argmax_agreement=0.8, min_cosine=0.95)
    assert misses({"logits": compare(built.reference, answers["logits"])}, limits) == []
    packages = (finished.study.best / "requirements.txt").read_text()
    assert f"{asked['artifact']['runtime']}==" in packages


def test_baseline_is_kept_beside_best(finished: Finished) -> None:
    assert (finished.study.baseline / "bert" / "config.pbtxt").is_file()
    assert (finished.study.baseline / "bert" / "1" / "model.onnx").is_file()


def changed(folder: Path, **sections: Mapping[str, Any]) -> Path:
    content = {**SPACE}
    for name, keys in sections.items():
        content[name] = {**SPACE[name], **keys}
    return tiny.write_space(folder, content, "changed.yaml")


def test_a_changed_space_is_refused_on_resume_with_the_difference(
    copied: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    before = _state(tmp_path / "results")
    run = start(changed(tmp_path, limit={"latency_ms": 1500}), "--trials", TRIALS + 1)
    assert run.wait() == 2
    assert "space.limit.latency_ms: was 2000.0, is 1500.0" in run.errors
    assert "--study NEW --warm-start tiny" in run.errors
    assert _state(tmp_path / "results") == before


def test_warm_start_is_refused_where_nothing_holds_and_leaves_nothing(
    copied: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    space = changed(tmp_path, limit={"latency_ms": 1500})
    run = start(space, "--study", "other", "--warm-start", "tiny")
    assert run.wait() == 2
    assert "no measurement of study tiny is valid here" in run.errors
    assert "limit.latency_ms: was 2000.0, is 1500.0" in run.errors
    missing = start(copied, "--study", "other", "--warm-start", "unknown")
    assert missing.wait() == 2
    assert "study 'unknown' not found" in missing.errors
    assert not (tmp_path / "results" / "other").exists()


@pytest.mark.slow
def test_warm_start_takes_over_what_still_holds(
    copied: Path, start: StartOptimizer, tmp_path: Path
) -> None:
    wider, dearer = {"instance_count": [1, 2]}, {"usd_per_hour": 0.72}
    space = changed(tmp_path, parameters=wider, price=dearer)
    run = start(space, "--study", "wider", "--warm-start", "tiny", "--trials", 1)
    assert run.wait() == 0, run.errors
    old = StudyDirectory(tmp_path / "results" / "tiny").trials.read_all().values()
    held = [record for record in old if record.outcome == "ok"]
    assert f"{len(held)} trials of study tiny are reused" in run.output
    new = StudyDirectory(tmp_path / "results" / "wider").trials.read_all().values()
    *carried, measured = new
    assert [record.origin for record in carried] == ["tiny"] * len(held)
    assert measured.origin is None
    assert measured.config not in [record.config for record in old]
    for before, after in zip(held, carried, strict=True):
        assert after.config == before.config
        assert before.score is not None
        assert after.score is not None
        twice = 2 * before.score.usd_per_million_at_capacity
        assert after.score.usd_per_million_at_capacity == pytest.approx(twice)


@pytest.mark.slow
def test_pytorch_and_bf16_are_searched_too(tmp_path: Path, start: StartOptimizer) -> None:
    content = tiny.space(
        parameters={
            "runtime": ["pytorch", "openvino"],
            "precision": ["fp32", "bf16"],
            "batching": [True],
            "padding": [[8, 16]],
        },
        budget={"trials": 2},
    )
    content["conditions"] = ["(runtime == 'pytorch') == (precision == 'bf16')"]
    content["models"]["bert"]["lengths"] = {"weights": {"4": 1, "8": 2, "16": 1}}
    run = start(tiny.write_space(tmp_path, content))
    assert run.wait(300) == 0, run.errors
    records = StudyDirectory(tmp_path / "results" / "tiny").trials.read_all().values()
    artifacts = [record.config.models[0].artifact for record in records]
    served = {(artifact.runtime, artifact.precision) for artifact in artifacts}
    assert served == {("pytorch", "bf16"), ("openvino", "fp32")}
    assert {record.outcome for record in records} <= {"ok", "bounded"}
