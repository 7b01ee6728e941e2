"""Every attribute of TensorRT that the builder uses exists in the real bindings of both majors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.unit import tensorrt_bindings
from tests.unit.engines import recipe
from tests.unit.fake_tensorrt import BUILDER_FLAGS, CREATION_FLAGS, VERSIONS

pytestmark = pytest.mark.tools

MAJORS = pytest.mark.parametrize("major", [10, 11])

_BUILD = """
import json, sys
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from optimizer.artifacts.engines import build_script
interface = tensorrt_bindings.IProgressMonitor
monitor = build_script.implementing(build_script.BuildProgress, interface)()
assert isinstance(monitor, interface)
assert "ignore_mismatch: bool" in tensorrt_bindings.IBuilderConfig.set_timing_cache.__doc__
flags = {
    name: {k: int(v) for k, v in getattr(tensorrt_bindings, name).__members__.items()}
    for name in ("NetworkDefinitionCreationFlag", "BuilderFlag")
}
print(json.dumps({"flags": flags, "version": tensorrt_bindings.__version__}))
sys.exit(build_script.main(sys.argv[1:]) - 1)
"""


@MAJORS
def test_what_the_builder_uses_is_there(major: int) -> None:
    there = json.loads(tensorrt_bindings.manifest(major).read_text())
    used = tensorrt_bindings.used(major)
    assert {"Builder", "IBuilderConfig", "OnnxParser", "IProgressMonitor"} < used.keys()
    missing = {
        f"{owner}.{name}"
        for owner, names in used.items()
        for name in names
        if name not in there.get(owner, ())
    }
    assert not missing


def test_the_manifests_tell_the_majors_apart() -> None:
    ten, eleven = (json.loads(tensorrt_bindings.manifest(m).read_text()) for m in (10, 11))
    assert "FP16" in ten["BuilderFlag"]
    assert "FP16" not in eleven["BuilderFlag"]
    assert "EXPLICIT_BATCH" not in eleven["NetworkDefinitionCreationFlag"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("cc") is None, reason="stubs of TensorRT need a C compiler")
@MAJORS
def test_the_real_bindings(major: int, tmp_path: Path) -> None:
    """The manifest is theirs, the fake is numbered as they are, and they take our classes."""
    tensorrt_bindings.unpack(major, tmp_path)
    classes = sorted(tensorrt_bindings.used(major))
    kept = tensorrt_bindings.manifest(major).read_text()
    assert tensorrt_bindings.to_text(tensorrt_bindings.read(tmp_path, classes)) == kept
    # Without a library there is no builder, and the script must say so and not crash.
    folder = str(tmp_path)
    text = tensorrt_bindings.run_with(tmp_path, _BUILD, recipe().to_json(), folder, folder, folder)
    said, *_, failure = map(json.loads, text.splitlines())
    assert said["flags"]["NetworkDefinitionCreationFlag"].items() >= CREATION_FLAGS[major].items()
    assert said["flags"]["BuilderFlag"].items() >= BUILDER_FLAGS[major].items()
    assert said["version"].split(".")[0] == VERSIONS[major].split(".")[0]
    assert failure["failure"].startswith("TypeError: pybind11::init(): factory")
