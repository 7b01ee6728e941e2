"""What the real TensorRT bindings have: read from their wheels, over stubs of the libraries.

    python -m tests.unit.tensorrt_bindings

writes tensorrt_attributes/*.json anew. It needs pip's way to PyPI and a C compiler, and neither a
GPU nor TensorRT's libraries: of these only the nine functions that the bindings link to are made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from optimizer.artifacts.engines import build_script
from tests.unit.engines import recipe
from tests.unit.fake_tensorrt import AS_IT_SHOULD_BE, Behaviour, Recording, fake_tensorrt

ROOT = Path(__file__).parents[2]
MANIFESTS = Path(__file__).parent / "tensorrt_attributes"
RELEASES = {10: "10.16", 11: "11.4"}

Attributes = dict[str, list[str]]
"""Names by class; "tensorrt" is the package itself."""

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_READ = """
import functools, json, sys
import tensorrt_bindings as trt
found = {}
for name in json.loads(sys.argv[1]):
    owner = trt if name == "tensorrt" else functools.reduce(getattr, name.split("."), trt)
    found[name] = sorted(n for n in dir(owner) if not n.startswith("_") or n == "__version__")
print(json.dumps(found))
"""


def used(major: int) -> Attributes:
    """What the builder uses, as the recording fake notes it: of a build, and of one that fails."""
    recording = Recording()
    failing = Behaviour(parser_errors=(("node", "Gelu", "no"),))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").touch()
        arguments = [recipe("fp32").to_json(), folder, folder, folder]
        for behaviour in (AS_IT_SHOULD_BE, failing):
            fake = fake_tensorrt(major, recording, behaviour)
            with (
                patch.dict(sys.modules, tensorrt=fake),
                patch.object(build_script, "visible_gpu", lambda: None),
                redirect_stdout(StringIO()),
                redirect_stderr(StringIO()),
            ):
                build_script.main(arguments)
    names: Attributes = {}
    for name in sorted(recording.used):
        owner, attribute = name.rsplit(".", 1)
        names.setdefault(owner, []).append(attribute)
    return names


def manifest(major: int) -> Path:
    """The file that says what the real bindings have."""
    return MANIFESTS / f"{RELEASES[major]}.json"


def unpack(major: int, into: Path) -> None:
    """Fetch the wheel of the bindings for this Python, and stub what they link to."""
    wanted = f"tensorrt-cu12-bindings=={RELEASES[major]}.*"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    subprocess.run([*download, "--dest", str(into), wanted], check=True, capture_output=True)
    [wheel] = into.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    source = into / "stubs.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        name = f"lib{library}.so.{major}"
        link = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(into / name)]
        subprocess.run([*link, str(source)], check=True, capture_output=True)


def run_with(unpacked: Path, code: str, *arguments: str) -> str:
    """Standard output of a Python in which `tensorrt_bindings` can be imported."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(unpacked),
        "PYTHONPATH": os.pathsep.join([str(unpacked), str(ROOT)]),
    }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def read(unpacked: Path, classes: list[str]) -> Attributes:
    """The public names of each class of the real bindings."""
    found: Attributes = json.loads(run_with(unpacked, _READ, json.dumps(classes)))
    return found


def to_text(attributes: Attributes) -> str:
    """A manifest as it is kept."""
    return json.dumps(attributes, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write both manifests."""
    if shutil.which("cc") is None:
        sys.exit("a C compiler is needed: apt-get install gcc libc6-dev")
    for major in RELEASES:
        with tempfile.TemporaryDirectory() as folder:
            unpack(major, Path(folder))
            manifest(major).write_text(to_text(read(Path(folder), sorted(used(major)))))


if __name__ == "__main__":
    main()
