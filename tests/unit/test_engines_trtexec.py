"""trtexec's command lines, as they are run, and what is read from its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.artifacts.engines import trtexec
from optimizer.configuration.runtimes.spec import Precision
from tests.unit.engines import LOCAL, recipe, without_workspace

GOLDEN = Path(__file__).parents[1] / "golden"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
GONE_IN_11 = ("--stronglyTyped", "--fp16", "--bf16", "--int8", "--fp8", "--best", "--calib")
LOG = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # /usr/src/tensorrt/bin/trtexec --onnx=m
[11/02/2026-10:00:26] [I] Selected Device: NVIDIA A10G
[11/02/2026-10:00:26] [I] Selected Device ID: 0
[11/02/2026-10:00:26] [I] Compute Capability: 8.6
[11/02/2026-10:00:27] [I] TensorRT version: 10.16.1
[11/02/2026-10:00:30] [I] [TRT] Local timing cache in use.
[11/02/2026-10:01:30] [E] Error[1]: [defaultAllocator.cpp::allocate::42] out of memory
"""


@pytest.mark.parametrize(("name", "major"), [("10.16", 10), ("11", 11)])
def test_command_lines(name: str, major: int) -> None:
    lines = []
    for precision in PRECISIONS:
        command = trtexec.command(recipe(precision), major, "/graph", "/plans", "/timings")
        lines += [f"# {precision}", " \\\n    ".join(command), ""]
    assert "\n".join(lines) == (GOLDEN / f"trtexec_{name}.txt").read_text()


def test_nothing_that_11_removed_is_given_to_it() -> None:
    for precision in PRECISIONS:
        command = trtexec.command(recipe(precision), 11, "/graph", "/plans", "/timings")
        assert not [option for option in command if option.startswith(GONE_IN_11)]


def test_without_a_limit_the_workspace_is_left_alone() -> None:
    own = recipe("fp16", without_workspace(LOCAL))
    command = trtexec.command(own, 10, "/graph", "/plans", "/timings")
    assert not [option for option in command if option.startswith("--memPoolSize")]


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec --help", "10.16.1.11"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] # trtexec", "11.1.0.106"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100900] # trtexec", "10.9.0"),
    ],
)
def test_the_version_is_read_from_the_banner(banner: str, version: str) -> None:
    found = trtexec.version_in(["== NVIDIA ==", banner])
    assert str(found) == version


def test_a_version_that_is_too_old_says_so() -> None:
    assert trtexec.Version(10, 12, 0, 3).lacking is None
    assert trtexec.Version(11, 0, 0, 3).lacking is None
    lacking = trtexec.Version(10, 11, 0, 33).lacking
    assert lacking == "TensorRT must be 10.12 or later, got 10.11.0.33"


def test_what_its_output_tells() -> None:
    lines = LOG.splitlines()
    told = [text for line in lines if (text := trtexec.progress_in(line)) is not None]
    assert told == ["Local timing cache in use."]
    assert trtexec.errors_in(lines) == (
        "Error[1]: [defaultAllocator.cpp::allocate::42] out of memory"
    )
    assert trtexec.errors_in(lines[:3]) is None
    assert trtexec.version_in(lines[1:]) is None


def test_another_gpu_than_the_recipes_is_seen() -> None:
    lines = LOG.splitlines()
    assert trtexec.gpu_mismatch(recipe(), lines) is None
    assert trtexec.gpu_mismatch(recipe(), lines[:1]) is None
    others = LOG.replace("A10G", "L4").replace("8.6", "8.9").splitlines()
    assert trtexec.gpu_mismatch(recipe(), others) == (
        "the engine is for NVIDIA A10G (8, 6), trtexec took NVIDIA L4 (8, 9)"
    )
