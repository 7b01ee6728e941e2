"""From a study to a bundle, without a server: what it holds, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from tritonclient.grpc import model_config_pb2

from optimizer.analysis.study_reading import read_study
from optimizer.commands.bundle_serving import BundleHost
from optimizer.commands.code_consent import CodeConsent
from optimizer.commands.export import _with_examples, export_study
from optimizer.commands.platforms import served_by
from optimizer.configuration.hosting import EmbeddedHost, RemoteHost
from optimizer.configuration.serving_config import ModelServing
from optimizer.errors import StorageError, UsageError
from optimizer.export.bundle.commented_config import commented, origins_in
from optimizer.export.bundle.manifest import LOAD, MANIFEST, digests, read_bundle
from optimizer.export.bundle.study_artifacts import StudyArtifacts
from optimizer.files.atomic import write_json
from optimizer.machine.slots import Slot
from optimizer.study.files import read_source_cards, write_source_cards
from optimizer.triton.repository import read_config
from optimizer.workload.request_sizes import RequestFile
from tests.unit.commands import Commands
from tests.unit.exported import MADE_BY, Exportable, without_baseline
from tests.unit.studies import MACHINE, small_space
from tests.unit.test_model_config import MODEL, built, servable

pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def study(tmp_path: Path) -> Exportable:
    return Exportable(tmp_path)


def test_the_best_is_exported_with_all_that_is_known_of_it(
    study: Exportable, tmp_path: Path
) -> None:
    bundle = study.export(tmp_path / "to")
    manifest = bundle.manifest
    assert (manifest.study, manifest.trial, manifest.made_by) == ("one", 1, MADE_BY)
    assert manifest.config == read_study(tmp_path / "results", "one").trials[1].config
    assert manifest.measured.confirmed
    assert manifest.measured.capacity_per_second == pytest.approx(280.0)
    assert manifest.measured.at_capacity is not None
    assert manifest.measured.at_capacity.machine is None
    [limit] = manifest.limits
    assert (limit.model, limit.percentile, limit.latency_ms) == ("bert", 95.0, 100.0)
    assert manifest.recommended.score.replicas == 2
    assert manifest.recommended.per_replica_per_second == pytest.approx(250.0)
    assert (manifest.versions.server, manifest.versions.cpu) == ("embedded", MACHINE.cpu)
    [model] = manifest.models
    assert model.licence == "unknown"
    assert model.packages == ("numpy==2", "openvino")
    assert manifest.missing == (
        "examples.npz: no examples were recorded, so outputs cannot be verified",
    )
    assert bundle.load.workload == read_study(tmp_path / "results", "one").searched.workload
    assert bundle.load.measurement.check_seconds == 10.0


def test_every_file_is_named_with_its_hash(study: Exportable, tmp_path: Path) -> None:
    bundle = study.export(tmp_path / "to")
    assert dict(bundle.manifest.files) == digests(bundle.root)
    assert set(bundle.manifest.files) == {
        "README.md", "requirements.txt", LOAD, "bert/config.pbtxt", "bert/1/model.xml",
        "bert/1/model.bin", "bert/1/model.py", "bert/1/session.py",
    }  # fmt: skip
    assert (bundle.root / "bert/1/model.bin").read_bytes() == b"weights int8"


def test_the_same_configuration_is_always_written_in_the_same_order(
    study: Exportable, tmp_path: Path
) -> None:
    """What is reviewed like code must not differ by how a process happens to order a map."""
    [model] = study.export(tmp_path / "bundle").manifest.models
    assert len(model.config["parameters"]) > 1
    for ordered in (model.config, model.config["parameters"]):
        assert list(ordered) == sorted(ordered)


def test_the_readme_says_how_to_start_check_and_roll_back(
    study: Exportable, tmp_path: Path
) -> None:
    readme = (study.export(tmp_path / "to").root / "README.md").read_text()
    for text in (
        'tritonserver --model-repository="$PWD" --disable-auto-complete-config',
        "280 requests/s",
        "optimizer verify .",
        "## Roll back",
        "- bert: unknown",
    ):
        assert text in readme


def test_another_trial_is_exported_by_its_number(study: Exportable, tmp_path: Path) -> None:
    bundle = study.export(tmp_path / "to", trial=0)
    assert bundle.manifest.models[0].config["parameters"]["precision"] == {"string_value": "fp32"}
    assert not bundle.manifest.measured.confirmed
    assert (bundle.root / "bert/1/model.bin").read_bytes() == b"weights fp32"


def test_files_of_the_study_itself_do_without_the_cache(study: Exportable, tmp_path: Path) -> None:
    shutil.rmtree(study.cache.root)
    assert study.export(tmp_path / "to", trial=0).manifest.trial == 0
    with pytest.raises(UsageError, match=r"the files of bert/openvino/int8 \(sha256 \w{12}\) are "):
        study.export(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".other*"))


@pytest.mark.parametrize(
    ("trial", "message"),
    [(7, "one has trials 0, 1; got 7"), (1, "1 did not meet the limits")],
)
def test_what_cannot_be_exported_is_refused(tmp_path: Path, trial: int, message: str) -> None:
    study = Exportable(tmp_path, {0: 100.0, 2: 0.0}, {})
    with pytest.raises(UsageError, match=message):
        study.export(tmp_path / "to", trial=trial)


def test_a_study_that_found_nothing_or_has_not_ended_says_so(tmp_path: Path) -> None:
    nothing = Exportable(tmp_path / "a", {0: 0.0}, {})
    with pytest.raises(UsageError, match="nothing to export: none of 1 trials met the limits"):
        nothing.export(tmp_path / "to")
    unended = Exportable(tmp_path / "b")
    without_baseline(unended.directory)
    with pytest.raises(UsageError, match="has not finished"):
        unended.export(tmp_path / "to")


def test_only_a_new_or_an_empty_folder_is_written(study: Exportable, tmp_path: Path) -> None:
    target = tmp_path / "to"
    target.mkdir()
    study.export(target)
    before = digests(target)
    with pytest.raises(UsageError, match="exists already: give a new folder"):
        study.export(target)
    assert digests(target) == before
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        study.export(tmp_path / "file")


def test_a_bundle_is_whole_or_not_there(
    study: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("optimizer.commands.export.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        study.export(tmp_path / "to")
    assert not [path for path in tmp_path.iterdir() if "to" in path.name]


def test_labels_and_licence_are_those_of_the_source(study: Exportable, tmp_path: Path) -> None:
    cards = {"bert": {"licence": "apache-2.0", "labels": ["no", "yes"]}}
    write_json(study.directory.sources, cards)
    bundle = study.export(tmp_path / "to")
    assert bundle.manifest.models[0].licence == "apache-2.0"
    assert (bundle.root / "bert/labels.txt").read_text() == "no\nyes\n"
    config = read_config(bundle.root / "bert/config.pbtxt")
    assert config.output[0].label_filename == "labels.txt"


def test_labels_that_are_not_those_of_the_output_are_left_out(
    study: Exportable, tmp_path: Path
) -> None:
    write_json(study.directory.sources, {"bert": {"licence": None, "labels": ["a", "b", "c"]}})
    assert not (study.export(tmp_path / "to").root / "bert/labels.txt").exists()


def test_damaged_cards_are_named(study: Exportable) -> None:
    write_source_cards(study.directory, [])
    assert read_source_cards(study.directory) == {}
    study.directory.sources.write_text('{"bert": 1}')
    with pytest.raises(StorageError, match=r"sources\.json"):
        read_source_cards(study.directory)


def test_a_damaged_study_is_named(study: Exportable, tmp_path: Path) -> None:
    write_json(study.directory.prepared, {"artifacts": []})
    with pytest.raises(StorageError, match="it does not list bert/openvino/int8"):
        study.export(tmp_path / "to")


def test_the_artefact_is_found_by_content_and_not_by_name(
    study: Exportable, tmp_path: Path
) -> None:
    (study.directory.baseline / "bert" / "1" / "model.bin").write_bytes(b"other")
    shutil.rmtree(study.cache.root)
    reading = read_study(tmp_path / "results", "one")
    artifacts = StudyArtifacts(reading, study.cache, tmp_path / "staging")
    with pytest.raises(UsageError, match="the files of bert/openvino/fp32"):
        artifacts.find(reading.trials[0].config.models[0].artifact)


# config.pbtxt


@settings(max_examples=50)
@given(servable)
def test_comments_change_nothing_that_protobuf_reads(model: ModelServing) -> None:
    config = built(model)
    read = text_format.Parse(commented(config, model, {}), model_config_pb2.ModelConfig())
    assert read == config


def test_every_field_says_where_its_value_comes_from() -> None:
    space = small_space()
    text = commented(built(MODEL), MODEL, origins_in(space))
    assert "# parameter max_batch_size: searched among 4, 8, 16\nmax_batch_size: 16\n" in text
    assert "# parameter preferred_batch_size: fixed by the space file: none\n" in text
    blocks = text.split("\n\n")
    assert all(block.startswith("# ") for block in blocks), blocks


def test_without_batching_the_comment_says_so() -> None:
    alone = replace(MODEL, batching=None, max_batch_size=1)
    assert "# no batching: at most the batch size of one request\n" in commented(
        built(alone), alone, {}
    )


# manifest.json


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MANIFEST, "{", "must be JSON, line 1"),
        (MANIFEST, "{}", r"schema_version: Field required"),
        (MANIFEST, '{"schema_version": 2}', "schema_version must be 1, got 2"),
        (MANIFEST, '{"schema_version": 1}', r"study: Field required \(and \d+ more\)"),
        (LOAD, '{"workload": 3}', "workload: "),
    ],
)
def test_a_damaged_description_is_named_by_file_and_place(
    study: Exportable, tmp_path: Path, name: str, content: str, message: str
) -> None:
    bundle = study.export(tmp_path / "to")
    (bundle.root / name).write_text(content)
    with pytest.raises(UsageError, match=rf"{name}:? {message}"):
        read_bundle(bundle.root)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"is not an exported bundle: manifest\.json must be readable"
    ):
        read_bundle(tmp_path)


def test_a_model_is_called_like_a_folder(study: Exportable, tmp_path: Path) -> None:
    bundle = study.export(tmp_path / "to")
    manifest = json.loads((bundle.root / MANIFEST).read_text())
    manifest["config"]["models"][0]["name"] = "../../bert"
    (bundle.root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="must be the name of a folder, got"):
        read_bundle(bundle.root)


def test_a_models_folder_lies_in_its_repository(study: Exportable, tmp_path: Path) -> None:
    bundle = study.export(tmp_path / "to")
    manifest = json.loads((bundle.root / MANIFEST).read_text())
    manifest["models"][0]["folder"] = "../bert"
    (bundle.root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"models\.bert\.folder: must be a name without /, got"):
        read_bundle(bundle.root)


# For a platform


def test_what_is_deployed_says_what_it_was_measured_on(study: Exportable, tmp_path: Path) -> None:
    export_study(study.request(tmp_path / "to", format="compose"), lambda _: None, MADE_BY)
    said = (tmp_path / "to/compose.yaml").read_text()
    assert "280 requests/s per instance, measured on Some CPU, 2 cores; 2 x test.large" in said


def test_of_a_remote_server_the_machine_is_not_known(tmp_path: Path) -> None:
    assert served_by(EmbeddedHost(), MACHINE) == MACHINE.hardware
    assert served_by(RemoteHost("a:1", "a:2", "a:3", tmp_path), MACHINE) is None


# The command


def test_the_command(study: Exportable, tmp_path: Path, optimizer: Commands) -> None:
    said = optimizer(
        "export", "one", "--to", "to", "--no-examples", "--cache", str(study.cache.root)
    )
    assert (said.code, said.err) == (0, "")
    assert "trial 1 of one: openvino int8" in said.out
    assert "280/s a replica, 2 replicas, $0.720 an hour" in said.out
    assert "missing: examples.npz" in said.out
    assert read_bundle(tmp_path / "to").manifest.trial == 1


def test_server_options_need_a_launcher(study: Exportable, optimizer: Commands) -> None:
    said = optimizer("export", "one", "--to", "to", "--image", "x:1")
    assert said.code == 2
    assert "image: goes with --launcher docker or remote" in said.err


def test_a_wrong_server_is_named(study: Exportable, optimizer: Commands) -> None:
    said = optimizer("export", "one", "--to", "to", "--launcher", "remote", "--grpc", "a:1")
    assert said.code == 2
    assert "http: is needed with launcher remote" in said.err


def test_without_the_file_of_its_requests_no_examples_are_recorded(
    study: Exportable, tmp_path: Path
) -> None:
    bundle = study.export(tmp_path / "bundle")
    [stream] = bundle.load.workload.streams
    file = RequestFile(tmp_path / "requests.npz", "0" * 64, 1, (1,))
    gone = replace(stream, payloads=replace(stream.payloads, file=file))
    load = replace(bundle.load, workload=replace(bundle.load.workload, streams=(gone,)))
    host = BundleHost(EmbeddedHost(), Slot((0,), ()), ())
    manifest = _with_examples(
        bundle.root, bundle.manifest, load, host, CodeConsent(study.cache, False, print)
    )
    assert manifest.missing[-1].startswith(
        f"examples.npz: no examples were recorded ({file.path}: the file of requests must exist"
    )
    assert all(model.examples is None for model in manifest.models)
