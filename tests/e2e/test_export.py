"""From a search to production: exported, carried elsewhere, verified by another process."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from optimizer.export.bundle.manifest import EXAMPLES, MANIFEST, PATCH, digests, read_bundle
from optimizer.export.patch_format import write_patch
from optimizer.export.repository_patch import PatchedFile
from optimizer.triton.config_text import edited
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.launcher import free_ports
from optimizer.triton.repository import read_config
from tests.e2e.conftest import Searched, completed
from tests.e2e.running import ROOT, Optimizer, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# A machine that others use serves a tenth of what it did a minute ago.
LAX = ("--within", "100000")


@dataclass(frozen=True)
class Verified:
    code: int
    output: str
    outcome: dict[str, Any]

    def check(self, name: str) -> dict[str, str]:
        return next(each for each in self.outcome["checks"] if each["name"] == name)


Verify = Callable[..., Verified]


@pytest.fixture(scope="module")
def exported(searched: Searched, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, from whose making nothing else is left."""
    folder = tmp_path_factory.mktemp("made here")
    searched.copy_to(folder)
    completed(folder, "export", "tiny", "--cache", searched.cache, "--to", "bundle")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "exported"
    shutil.move(folder / "bundle", elsewhere)
    shutil.rmtree(folder)
    return elsewhere


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def verify(tmp_path: Path) -> Iterator[Verify]:
    with ExitStack() as stack:

        def run(bundle: Path, *options: object) -> Verified:
            optimizer = Optimizer(["verify", bundle, "--json", "found.json", *options], tmp_path)
            stack.callback(optimizer.end)
            code = optimizer.wait()
            assert optimizer.errors == ""
            found = json.loads((tmp_path / "found.json").read_text())
            return Verified(code, optimizer.output, found)

        yield run


def signed(bundle: Path, **changes: Any) -> Path:
    """The bundle, as if what was changed in it had been exported so."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest |= {"files": digests(bundle), **changes}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


def changed(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_what_was_exported_passes(bundle: Path, verify: Verify) -> None:
    verified = verify(bundle, *LAX)
    assert verified.code == 0, verified.output
    assert verified.outcome["outcome"] == "pass"
    assert {check["outcome"] for check in verified.outcome["checks"]} == {"pass"}
    assert verified.outcome["capacity_per_second"] > 0
    assert verified.outcome["level"]["machine"] is not None
    assert verified.output.splitlines()[-1] == "pass"


def test_a_changed_byte_fails_before_anything_is_started(bundle: Path, verify: Verify) -> None:
    model = bundle / "bert" / "1" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    verified = verify(bundle)
    assert verified.code == 1
    assert verified.check("files")["text"] == "bert/1/model.onnx differs"
    assert verified.check("limit")["outcome"] == "not checked"


def test_a_changed_delay_fails_by_its_name(bundle: Path, verify: Verify) -> None:
    config = bundle / "bert" / "config.pbtxt"
    changed(config, "max_queue_delay_microseconds: 500", "max_queue_delay_microseconds: 900")
    field = "bert: dynamic_batching.max_queue_delay_microseconds"
    verified = verify(bundle)
    assert verified.code == 1
    assert "bert/config.pbtxt differs" in verified.check("files")["text"]
    assert f"{field}: measured 500, the file says 900" in verified.check("files")["text"]
    verified = verify(signed(bundle))
    assert verified.code == 1
    assert verified.check("files")["outcome"] == "pass"
    assert verified.check("configuration") == {
        "name": "configuration", "outcome": "fail",
        "text": f"{field}: requested 500, the server runs 900",
    }  # fmt: skip


def test_a_wrong_output_fails(bundle: Path, verify: Verify) -> None:
    code = bundle / "bert" / "1" / "model.py"
    changed(code, "np.split(array", "np.split(-array")
    verified = verify(signed(bundle), "--allow-code")
    assert verified.code == 1
    assert verified.check("outputs")["outcome"] == "fail"
    assert "mean cosine must be at least 0.95, got -1" in verified.check("outputs")["text"]
    assert verified.check("limit")["outcome"] == "not checked"


def test_a_slower_model_misses_the_limit(bundle: Path, verify: Verify) -> None:
    code = bundle / "bert" / "1" / "model.py"
    changed(code, "def execute(self, requests):\n", (
        "def execute(self, requests):\n        import time; time.sleep(0.25)\n"
    ))  # fmt: skip
    verified = verify(signed(bundle), "--allow-code", *LAX)
    assert verified.code == 1
    assert verified.check("outputs")["outcome"] == "pass"
    assert verified.check("limit")["outcome"] == "fail"
    assert "(limit 2000 ms)" in verified.check("limit")["text"]
    assert verified.check("capacity")["outcome"] == "not checked"


def test_another_capacity_within_the_limit_is_drift(bundle: Path, verify: Verify) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    for key in ("capacity_per_second", "capacity_low_per_second", "capacity_high_per_second"):
        manifest["measured"][key] = 1e6
    verified = verify(signed(bundle, measured=manifest["measured"]))
    assert verified.code == 5
    assert verified.check("limit")["outcome"] == "pass"
    assert verified.check("capacity")["outcome"] == "drift"
    assert "in 2 measurements" in verified.check("capacity")["text"]


def test_a_model_that_cannot_be_loaded_fails_with_the_reason(bundle: Path, verify: Verify) -> None:
    (bundle / "bert" / "1" / "model.onnx").write_bytes(b"no model")
    verified = verify(signed(bundle))
    assert verified.code == 1
    assert "it cannot be served here" in verified.check("configuration")["text"]


def test_it_is_a_repository_that_tritonserver_starts_by_itself(
    bundle: Path, tmp_path: Path
) -> None:
    runtime = find_embedded_runtime()
    backends = runtime.lay_out(tmp_path / "backends")
    ports = free_ports(3)
    manifest = json.loads((bundle / MANIFEST).read_text())
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(runtime.binary, f"--model-repository={bundle}", *manifest["server_arguments"]),
                *(f"--backend-directory={backends}", "--allow-gpu-metrics=false"),
                *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1"),
                *(f"--grpc-port={ports[0]}", f"--http-port={ports[1]}"),
                *("--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}"),
            ],
            stdout=log, stderr=subprocess.STDOUT, env=dict(runtime.environment),
        )  # fmt: skip
    try:
        addresses = Endpoint(*(f"127.0.0.1:{port}" for port in ports))
        with ServerControl(addresses) as control:
            wait_until(control.ready, (tmp_path / "log").read_text())
            assert control.models_present() == ("bert",)
    finally:
        server.terminate()
        server.wait(30)
    further = digests(bundle).keys() - manifest["files"].keys()
    assert {Path(path).parent.name for path in further} == {"__pycache__"}, "README says so"


def test_nothing_in_it_names_this_machine_or_is_executed_when_read(exported: Path) -> None:
    own = {socket.gethostname(), str(Path.home()), str(ROOT), sys.prefix, str(exported)}
    own |= {f"/home/{getpass.getuser()}", "/tmp/", "site-packages", "pickle", "/usr/"}
    own |= {"AWS_SECRET", "PASSWORD", "BEGIN PRIVATE KEY"}
    read = [path for path in exported.rglob("*") if path.is_file()]
    assert {path.suffix for path in read}.isdisjoint({".pkl", ".pickle", ".pt", ".pth"})
    for path in read:
        content = path.read_bytes()
        assert not [text for text in own if text.encode() in content], path
    assert not any(path.is_symlink() for path in exported.rglob("*"))


def test_classes_are_named_as_the_source_names_them(exported: Path) -> None:
    assert (exported / "bert" / "labels.txt").read_text() == "no\nperhaps\nyes\n"
    assert read_config(exported / "bert" / "config.pbtxt").output[0].label_filename == "labels.txt"


def test_its_configuration_is_commented_and_read_by_protobuf(exported: Path) -> None:
    path = exported / "bert" / "config.pbtxt"
    assert (
        "# parameter max_queue_delay_microseconds: fixed by the space file: 500" in path.read_text()
    )
    assert read_config(path).dynamic_batching.max_queue_delay_microseconds == 500


def test_a_patched_repository_passes(bundle: Path, verify: Verify, tmp_path: Path) -> None:
    """The patch is applied by git to the repository that was deployed, and verified there."""
    repository = tmp_path / "my models"
    shutil.copytree(bundle / "bert", repository / "bert", ignore=shutil.ignore_patterns(EXAMPLES))
    path = PurePosixPath("bert/config.pbtxt")
    measured = (repository / path).read_text()
    config = read_config(repository / path)
    config.dynamic_batching.max_queue_delay_microseconds = 9000
    deployed = f"# Ask before you change it!\n{edited(measured, config)}"
    (repository / path).write_text(deployed)
    file = PatchedFile(path, deployed, f"# Ask before you change it!\n{measured}")
    (tmp_path / "patch").mkdir()
    patch = write_patch(read_bundle(bundle), repository, [file], tmp_path / "patch")
    shutil.rmtree(bundle)
    before = {each: each.read_bytes() for each in repository.rglob("*") if each.is_file()}

    unpatched = verify(patch.root, "--patched", repository)
    assert unpatched.code == 1
    assert "max_queue_delay_microseconds: measured 500, the file says 9000" in unpatched.output

    subprocess.run(["git", "apply", patch.root / PATCH], cwd=repository, check=True)
    verified = verify(patch.root, "--patched", repository, *LAX)
    assert verified.code == 0, verified.output
    assert {check["outcome"] for check in verified.outcome["checks"]} == {"pass"}
    after = {each: each.read_bytes() for each in repository.rglob("*") if each.is_file()}
    assert after == {**before, repository / path: file.after.encode()}
