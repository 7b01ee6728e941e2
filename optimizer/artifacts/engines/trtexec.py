"""The command line and the output of trtexec, for TensorRT 10 and 11."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.artifacts.engines.recipe import InputShapes, Recipe, Shape

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Path in NVIDIA's images."""

_LEAST_VERSION = (10, 12)
_BANNER = re.compile(r"\[TensorRT v(\d+)\](?: \[b(\d+)\])?")
_LOG_LINE = re.compile(r"\[I\] \[TRT\] (.+)")
_ERROR = re.compile(r"\[E\] (.+)")
_DEVICE = re.compile(r"\[I\] Selected Device: (.+)")
_CAPABILITY = re.compile(r"\[I\] Compute Capability: (\d+)\.(\d+)")


@dataclass(frozen=True)
class Version:
    """TensorRT's version; `build` is None where trtexec's banner lacks it."""

    major: int
    minor: int
    patch: int
    build: int | None

    def __str__(self) -> str:
        parts = (self.major, self.minor, self.patch, self.build)
        return ".".join(str(part) for part in parts if part is not None)

    @property
    def lacking(self) -> str | None:
        """Why this version cannot build engines here; None where it can."""
        if (self.major, self.minor) >= _LEAST_VERSION:
            return None
        return f"TensorRT must be {'.'.join(map(str, _LEAST_VERSION))} or later, got {self}"


def command(recipe: Recipe, major: int, graph: str, plans: str, timings: str) -> tuple[str, ...]:
    """Return the command line of a build.

    From version 11 on every network is strongly typed, and the option for it is refused.

    Args:
        major: major version of TensorRT.
        graph, plans, timings: the folders, as trtexec sees them.
    """
    options = [
        f"--onnx={graph}/{recipe.onnx}",
        f"--saveEngine={plans}/{recipe.plan}",
        f"--minShapes={_shapes((each, each.least) for each in recipe.inputs)}",
        f"--optShapes={_shapes((each, each.optimal) for each in recipe.inputs)}",
        f"--maxShapes={_shapes((each, each.most) for each in recipe.inputs)}",
        f"--builderOptimizationLevel={recipe.optimization_level}",
        f"--timingCacheFile={timings}/{recipe.timing_cache}",
        "--skipInference",
    ]
    if recipe.workspace_mib is not None:
        options.append(f"--memPoolSize=workspace:{recipe.workspace_mib}")
    if not recipe.tf32:
        options.append("--noTF32")
    if major < 11:
        options.append("--stronglyTyped")
    return (TRTEXEC, *options)


def version_in(lines: Iterable[str]) -> Version | None:
    """Return the version in trtexec's banner: "[TensorRT v101601] [b11]" is 10.16.1.11."""
    for line in lines:
        banner = _BANNER.search(line)
        if banner is not None:
            number, build = banner.groups()
            major, rest = divmod(int(number), 10_000)
            return Version(major, *divmod(rest, 100), int(build) if build else None)
    return None


def progress_in(line: str) -> str | None:
    """Return the progress text of a line, None for other lines."""
    progress = _LOG_LINE.search(line)
    return progress.group(1) if progress is not None else None


def errors_in(lines: Iterable[str]) -> str | None:
    """Return the errors in trtexec's output, None where there are none."""
    errors = [match.group(1) for line in lines if (match := _ERROR.search(line)) is not None]
    return "; ".join(errors) or None


def gpu_mismatch(recipe: Recipe, lines: Iterable[str]) -> str | None:
    """Return how trtexec's GPU differs from the recipe's; None where it does not or is not printed.

    The name of a MIG instance begins with the name of its GPU.
    """
    text = "\n".join(lines)
    device, capability = _DEVICE.search(text), _CAPABILITY.search(text)
    if device is None or capability is None:
        return None
    name, version = device.group(1).strip(), tuple(map(int, capability.groups()))
    if name.startswith(recipe.gpu_name) and version == recipe.compute_capability:
        return None
    return (
        f"the engine is for {recipe.gpu_name} {recipe.compute_capability},"
        f" trtexec took {name} {version}"
    )


def _shapes(shapes: Iterable[tuple[InputShapes, Shape]]) -> str:
    return ",".join(f"{each.name}:{'x'.join(map(str, shape))}" for each, shape in shapes)
