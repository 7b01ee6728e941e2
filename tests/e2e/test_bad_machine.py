"""Full disks, missing packages, impossible limits, bad files: one message and an exit code."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from optimizer import cli
from optimizer.commands.run import run_study
from optimizer.commands.run_options import RunOptions
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.errors import RequirementError, StorageError
from optimizer.export.bundle.repository import Provenance, write_model_repository
from optimizer.files.shipped import shipped
from optimizer.study.directory import StudyDirectory
from optimizer.triton import embedded
from tests.e2e import tiny
from tests.e2e.conftest import Built, Mount, StartOptimizer, fill
from tests.e2e.running import Optimizer
from tests.unit.studies import open_study, small_space

pytestmark = pytest.mark.timeout(300)

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return tiny.write_space(tmp_path, tiny.space())


def assert_one_message(optimizer: Optimizer, *texts: str) -> None:
    said = optimizer.errors
    assert said.startswith("error: "), said
    assert said.count("error: ") == 1, said
    for sign in ("Traceback", "Exception ignored", 'File "'):
        assert sign not in said
    for text in texts:
        assert text in said


# Disks


def run_until_the_disk_is_full(disk: Path, space: Path, start: StartOptimizer) -> Path:
    """The optimizer ends with one message in its second trial; returns what fills the disk."""
    run = start(space, "--results", disk, "--trials", 2)
    run.wait_for("  2/2 ")
    ballast = fill(disk)
    assert run.wait() == 4
    assert_one_message(run, f"cannot write {disk}/tiny/", "No space left on device")
    assert list(StudyDirectory(disk / "tiny").trials.read_all()) == [0], "no half-written record"
    return ballast


@pytest.mark.slow
def test_a_full_disk_ends_the_run_which_resumes_once_there_is_room_again(
    space: Path, mount: Mount, start: StartOptimizer
) -> None:
    disk = mount("disk", "size=8m")
    run_until_the_disk_is_full(disk, space, start).unlink()
    again = start(space, "--results", disk, "--trials", 2)
    assert again.wait() == 0, again.errors
    assert "  1/2 " not in again.output[: again.output.index("confirm:")]
    assert (disk / "tiny" / "best" / "bert" / "config.pbtxt").is_file()


def test_a_disk_that_has_no_room_for_best_leaves_the_one_before(built: Built, mount: Mount) -> None:
    best = mount("disk", "size=1m") / "best"
    spec = built.spec("onnxruntime", "fp32")
    templates = shipped("model_repository_templates")
    config = ServingConfig((ModelServing("bert", spec),))
    write_model_repository(best, templates, config, {"bert": built.files[spec]}, Provenance({}, {}))
    before = sorted(best.rglob("*"))
    fill(best.parent)
    with pytest.raises(StorageError, match=rf"cannot write {best.parent}.*No space left"):
        write_model_repository(
            best, templates, config, {"bert": built.files[spec]}, Provenance({}, {})
        )
    assert sorted(best.rglob("*")) == before
    assert sorted(path.name for path in best.parent.iterdir()) == ["ballast", "best"]


def test_a_study_whose_journal_has_no_room_names_it_and_is_mended(mount: Mount) -> None:
    folder = mount("disk", "size=1m")
    study = open_study(folder, small_space())
    ballast = fill(folder)

    def until_the_last_page_is_full() -> None:
        for _ in range(1000):
            study.enqueue(small_space().baseline)

    with pytest.raises(StorageError, match=rf"cannot write {folder}/study\.journal: No space"):
        until_the_last_page_is_full()
    ballast.unlink()
    assert open_study(folder, small_space()).ask().number == 0


def test_output_that_has_no_room_is_one_message(
    space: Path, mount: Mount, start: StartOptimizer
) -> None:
    folder = mount("disk", "size=64k")
    fill(folder)
    output = os.open(folder / "ballast", os.O_WRONLY | os.O_APPEND)
    run = start(space, output=output)
    os.close(output)
    assert run.wait() == 4
    assert_one_message(run, "cannot write the output: No space left on device")


def test_a_disk_that_is_full_from_the_start(
    space: Path, mount: Mount, start: StartOptimizer
) -> None:
    disk = mount("disk", "size=64k")
    (disk / "tiny").mkdir()
    (disk / "tiny" / "lease").mkdir()
    fill(disk)
    run = start(space, "--results", disk)
    assert run.wait() == 4
    assert_one_message(run, f"cannot write {disk}/tiny/", "No space left on device")


def test_a_cache_without_room_for_the_model_is_refused_before_any_build(
    space: Path, mount: Mount, start: StartOptimizer, tmp_path: Path
) -> None:
    cache = mount("cache", "size=100k,mode=700")
    run = start(space, "--cache", cache)
    assert run.wait() == 3, run.errors
    assert_one_message(run, f"{cache}: building what this space needs takes about", "are free")
    assert list(cache.glob(".building-*")) == [], "no half-built artefact"
    assert not (tmp_path / "results" / "tiny" / "trials").exists()


def test_results_that_are_a_file(space: Path, start: StartOptimizer, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("something else")
    run = start(space)
    assert run.wait() == 2
    assert_one_message(run, f"results cannot be written to {tmp_path / 'results' / 'tiny'}")
    assert (tmp_path / "results").read_text() == "something else"


@pytest.fixture
def read_only(mount: Mount, tmp_path: Path) -> Path:
    """A folder that nobody can write to; permissions do not stop root."""
    if AS_ROOT:
        return mount("read-only", "ro")
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    return folder


def test_results_that_cannot_be_written(
    space: Path, start: StartOptimizer, read_only: Path
) -> None:
    run = start(space, "--results", read_only / "results")
    assert run.wait() == 2
    assert_one_message(run, f"results cannot be written to {read_only / 'results' / 'tiny'}: ")
    assert run.output == ""


def test_a_cache_that_cannot_be_written(
    space: Path, start: StartOptimizer, read_only: Path, tmp_path: Path
) -> None:
    run = start(space, "--cache", read_only / "cache")
    assert run.wait() == 4
    assert_one_message(run, f"cannot write {read_only / 'cache'}")
    assert not (tmp_path / "results" / "tiny" / "trials").exists()


def test_a_damaged_record_is_named(space: Path, start: StartOptimizer, tmp_path: Path) -> None:
    record = tmp_path / "results" / "tiny" / "trials" / "00000.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"number": 0')
    run = start(space)
    assert run.wait() == 4
    assert_one_message(run, str(record))


# What is not installed


@pytest.fixture
def without_openvino(tmp_path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """An interpreter whose site-packages has everything but OpenVINO."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in (Path(p) for p in sys.path if p.endswith("-packages")):
        for entry in folder.iterdir():
            if "openvino" not in entry.name.lower() and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    paths = os.pathsep.join([str(Path(tiny.__file__).parents[2]), str(packages)])
    return (sys.executable, "-S"), {"PYTHONPATH": paths}


def test_a_missing_package_is_named_with_its_remedy_before_anything_starts(
    without_openvino: tuple[tuple[str, ...], dict[str, str]], start: StartOptimizer, tmp_path: Path
) -> None:
    python, environment = without_openvino
    content = tiny.space(parameters={"runtime": ["onnxruntime", "openvino"]})
    space = tiny.write_space(tmp_path, content)
    run = start(space, python=python, environment=environment)
    assert run.wait() == 3
    assert_one_message(run, "this space needs openvino: pip install ")
    assert not (tmp_path / "results").exists()


def test_a_missing_libpython_is_named_with_the_command_that_installs_it(
    space: Path, tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted, absent = f"libpython{version}.so".encode(), b"libpython9.99.so"
    real = embedded._package_folder()
    stub = Path("python_backend_stubs", version, "triton_python_backend_stub")
    package = tmp_path / "tritonserver"
    (package / stub).parent.mkdir(parents=True)
    # A real stub that needs a library which no machine has.
    content = (real / stub).read_bytes()
    assert wanted in content
    (package / stub).write_bytes(content.replace(wanted, absent.ljust(len(wanted), b"."), 1))
    (package / stub).chmod(0o755)
    monkeypatch.setattr(embedded, "_package_folder", lambda: package)
    # It finds everything else beside itself, and has been moved.
    monkeypatch.setenv("LD_LIBRARY_PATH", str(real.parents[1] / "nvidia_pytriton.libs"))
    with pytest.raises(RequirementError) as caught:
        run_study(
            RunOptions(space, results=tmp_path / "results", cache=built.cache), lambda _: None
        )
    assert caught.value.exit_code == 3
    assert f"apt-get install libpython{version}" in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_missing_server_is_named_with_its_remedy(
    space: Path, tmp_path: Path, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RequirementError, match="embedded Triton is not installed: pip install"):
        run_study(
            RunOptions(space, results=tmp_path / "results", cache=built.cache), lambda _: None
        )
    assert not (tmp_path / "results").exists()


# Limits that cannot be met


@pytest.mark.slow
def test_a_latency_limit_that_nothing_meets(start: StartOptimizer, tmp_path: Path) -> None:
    content = tiny.space(limit={"latency_ms": 0.01}, measurement={"check_seconds": 0.3})
    space = tiny.write_space(tmp_path, content)
    run = start(space)
    assert run.wait() == 1, run.errors
    assert run.errors == ""
    assert "none of 1 trials met the limits" in " ".join(run.output.split())
    study = StudyDirectory(tmp_path / "results" / "tiny")
    summary = study.read_json(study.summary)
    assert (summary["outcome"], summary["best"]) == ("nothing met the limits", None)
    assert summary["trials"] == {"ok": 0, "infeasible": 1, "bounded": 0, "failed": 0}
    assert not study.best.exists()
    [record] = study.trials.read_all().values()
    assert record.score is None
    assert "over the limit of 0.01 ms" in record.reason
    assert all(value > 0 for _, value in record.constraints)
    again = start(space)
    assert again.wait() == 1
    assert "is finished" in again.output


@pytest.mark.slow
def test_artefacts_that_all_miss_the_accuracy(start: StartOptimizer, tmp_path: Path) -> None:
    content = tiny.space(parameters={**tiny.ALL_ARTIFACTS, "precision": ["int8"]})
    content["models"]["bert"]["accuracy"] = {"min_argmax_agreement": 0, "min_cosine": 1}
    run = start(tiny.write_space(tmp_path, content))
    assert run.wait() == 4
    assert_one_message(run, "no artefact of the space can be served")
    for runtime in ("onnxruntime", "openvino"):
        assert f"  bert/{runtime}/int8: accuracy: mean cosine must be at least 1, got" in run.errors
    assert not (tmp_path / "results" / "tiny" / "summary.json").exists()


# Space files. Every rule has a unit test; here it is what a person gets to see.


def without(key: str) -> dict[str, Any]:
    content = tiny.space()
    del content[key]
    return content


def vocabulary_overflow() -> dict[str, Any]:
    content = tiny.space()
    content["models"]["bert"]["inputs"]["input_ids"]["maximum"] = 1000
    return content


def missing_model_file() -> dict[str, Any]:
    content = tiny.space()
    content["models"]["bert"]["source"] = {"onnx": "nowhere/model.onnx"}
    return content


def contradiction() -> dict[str, Any]:
    conditions = ["max_batch_size > 4", "max_batch_size < 8"]
    return {**tiny.space(parameters={"max_batch_size": [4, 8]}), "conditions": conditions}


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key": ({**tiny.space(), "colour": "red"}, ("colour", "unknown key")),
    "wrong type": (tiny.space(budget={"trials": "many"}), ("budget.trials", "'many'")),
    "missing key": (without("price"), ("price", "is required")),
    "empty space": (tiny.space(parameters={"runtime": []}), ("parameters.runtime",)),
    "contradictory conditions": (
        contradiction(),
        ("no combination of values", "max_batch_size < 8"),
    ),
    "missing model file": (missing_model_file(), ("nowhere/model.onnx", "must exist")),
    "vocabulary overflow": (vocabulary_overflow(), ("input_ids", "vocab")),
    "no space at all": ({}, ("study", "models", "price")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_space_file_is_one_clear_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, texts = BAD[name]
    space, results = tiny.write_space(tmp_path, content), tmp_path / "results"
    assert cli._exit_code(["run", str(space), "--results", str(results)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {space}: ")
    assert said.err.count("error: ") == 1
    for text in texts:
        assert text in said.err
    assert not results.exists()


def test_all_mistakes_are_shown_at_once_by_the_command(
    start: StartOptimizer, tmp_path: Path
) -> None:
    content = {**tiny.space(limit={"latency_ms": -1}), "colour": "red"}
    run = start(tiny.write_space(tmp_path, content))
    assert run.wait() == 2
    assert_one_message(run, "space.yaml: 2 mistakes", "limit.latency_ms: ", "colour: unknown key")
    assert run.output == ""
    assert not (tmp_path / "results").exists()


def test_a_space_file_that_is_not_there(start: StartOptimizer, tmp_path: Path) -> None:
    run = start(tmp_path / "nowhere.yaml")
    assert run.wait() == 2
    assert_one_message(run, "nowhere.yaml", "must be readable")
    assert not (tmp_path / "results").exists()
