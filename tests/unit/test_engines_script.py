"""The whole path of the build script, on a recording fake of TensorRT 10 and of 11."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optimizer.artifacts.engines import build_script
from tests.unit.engines import LOCAL, recipe, without_workspace
from tests.unit.fake_tensorrt import (
    AS_IT_SHOULD_BE,
    TIMING_HEADER,
    VERSIONS,
    Behaviour,
    Recording,
    fake_tensorrt,
)

RECIPE = recipe().to_json()
MAJORS = pytest.mark.parametrize("major", [10, 11])


class Bench:
    """A recipe, folders, and the fake that is imported as `tensorrt`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders = [root / name for name in ("graph", "plans", "timings")]
        for folder in self.folders:
            folder.mkdir()
        (self.folders[0] / "model.onnx").touch()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(build_script, "visible_gpu", lambda: None)

    @property
    def plan(self) -> Path:
        return self.folders[1] / "model.plan"

    @property
    def timings(self) -> Path:
        return self.folders[2] / recipe().timing_cache

    def build(
        self, major: int, behaviour: Behaviour = AS_IT_SHOULD_BE, text: str = RECIPE
    ) -> tuple[int, Recording]:
        recording = Recording()
        fake = fake_tensorrt(major, recording, behaviour)
        self._monkeypatch.setitem(sys.modules, "tensorrt", fake)
        return build_script.main([text, *map(str, self.folders)]), recording


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@MAJORS
def test_a_build_as_it_should_be(
    bench: Bench, major: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, asked = bench.build(major)
    assert code == 0
    assert asked.network_flags == {10: 2, 11: 1}[major]  # 1 << STRONGLY_TYPED
    assert asked.parsed == str(bench.folders[0] / "model.onnx")
    assert asked.shapes == {
        "input_ids": ((1, 16), (8, 128), (32, 128)),
        "attention_mask": ((1, 16), (8, 128), (32, 128)),
    }
    assert (asked.workspace_bytes, asked.optimization_level) == (4096 * 2**20, 3)
    assert asked.tf32
    assert all(asked.strict)
    assert bench.plan.read_bytes() == b"plan of " + VERSIONS[major].encode()
    *progress, facts = said(capsys)
    assert {"progress": "Building Engine 0/2"} in progress
    assert facts["facts"] == {
        "tensorrt": VERSIONS[major],
        "gpu_name": "NVIDIA A10G",
        "compute_capability": [8, 6],
    }
    assert {path.name for folder in bench.folders for path in folder.iterdir()} == {
        "model.onnx",
        "model.plan",
        recipe().timing_cache,
    }


@MAJORS
def test_fp32_clears_tf32_and_no_limit_leaves_the_workspace_alone(bench: Bench, major: int) -> None:
    _, asked = bench.build(major, text=recipe("fp32", without_workspace(LOCAL)).to_json())
    assert not asked.tf32
    assert asked.workspace_bytes is None


@MAJORS
def test_timings_are_kept_and_those_of_another_version_are_begun_anew(
    bench: Bench, major: int
) -> None:
    own = TIMING_HEADER + VERSIONS[major].encode()
    assert bench.build(major)[1].timings_accepted == [True]
    assert bench.timings.read_bytes() == own
    assert bench.build(major)[1].timings_accepted == [True]
    bench.timings.write_bytes(TIMING_HEADER + b"9.0")
    code, asked = bench.build(major)
    assert (code, asked.timings_accepted) == (0, [False, True])
    assert bench.timings.read_bytes() == own


@MAJORS
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (
            Behaviour(parser_errors=(("/a/Gelu", "Gelu", "no such op"), ("/b", "If", "no"))),
            "node '/a/Gelu' (Gelu): no such op; node '/b' (If): no",
        ),
        (
            Behaviour(no_plan=True, log_error="Cuda Runtime (out of memory)"),
            "TensorRT found no engine for this graph; Cuda Runtime (out of memory)",
        ),
        (Behaviour(empty_plan=True), "TensorRT found no engine for this graph"),
        (Behaviour(raises="a crash"), "RuntimeError: a crash"),
        (Behaviour(version="10.11.0.33"), "TensorRT must be 10.12 or later, got 10.11.0.33"),
    ],
    ids=["parser", "no plan", "empty plan", "raises", "too old"],
)
def test_what_fails_says_why_and_leaves_no_plan(
    bench: Bench,
    major: int,
    behaviour: Behaviour,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _ = bench.build(major, behaviour)
    assert code == 1
    assert said(capsys)[-1]["failure"].startswith(reason)
    assert not list(bench.folders[1].iterdir())


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        (("NVIDIA A10G", (8, 6)), 0),
        (("NVIDIA A10G MIG 1g.6gb", (8, 6)), 0),
        (("NVIDIA L4", (8, 9)), 1),
        (("NVIDIA A10G", (8, 9)), 1),
    ],
)
def test_another_gpu_than_the_recipes_is_refused(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seen: tuple[str, tuple[int, int]],
    code: int,
) -> None:
    monkeypatch.setattr(build_script, "visible_gpu", lambda: seen)
    assert bench.build(10)[0] == code
    if code:
        message = f"the engine is for NVIDIA A10G (8, 6), CUDA sees {seen[0]} {seen[1]}"
        assert said(capsys)[-1] == {"failure": message}


def test_it_needs_nothing_but_the_standard_library_and_tensorrt(tmp_path: Path) -> None:
    """A copy alone in a folder, in a Python without site packages."""
    script = tmp_path / "build_script.py"
    script.write_bytes(Path(build_script.__file__).read_bytes())
    (tmp_path / "tensorrt.py").write_text("raise ImportError('here')\n")
    ended = subprocess.run(
        [sys.executable, "-S", "-E", str(script), "{}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("ImportError: here")
