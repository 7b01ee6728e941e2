"""TensorRT's command-line builder: its options in both majors, and what its output says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.artifacts.engines.recipe import InputShapes, Recipe, Shape

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
"""Where NVIDIA's images have it."""

_LEAST_VERSION = (10, 12)
_BANNER = re.compile(r"\[TensorRT v(\d+)\](?: \[b(\d+)\])?")
_TOLD = re.compile(r"\[I\] \[TRT\] (.+)")
_ERROR = re.compile(r"\[E\] (.+)")
_DEVICE = re.compile(r"\[I\] Selected Device: (.+)")
_CAPABILITY = re.compile(r"\[I\] Compute Capability: (\d+)\.(\d+)")


@dataclass(frozen=True)
class Version:
    """TensorRT's, as trtexec's banner has it; `build` is None where that does not tell it."""

    major: int
    minor: int
    patch: int
    build: int | None

    def __str__(self) -> str:
        parts = (self.major, self.minor, self.patch, self.build)
        return ".".join(str(part) for part in parts if part is not None)

    @property
    def lacking(self) -> str | None:
        """Why it cannot build what is asked; None where it can."""
        if (self.major, self.minor) >= _LEAST_VERSION:
            return None
        return f"TensorRT must be {'.'.join(map(str, _LEAST_VERSION))} or later, got {self}"


def command(recipe: Recipe, major: int, graph: str, plans: str, timings: str) -> tuple[str, ...]:
    """The command line of a build.

    From version 11 on every network is strongly typed and an option that says so is refused. No
    inference is run, so the options that differ between the majors there do not matter.

    Args:
        major: of the TensorRT that trtexec belongs to.
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
    """The version in trtexec's banner: "[TensorRT v101601] [b11]" is 10.16.1.11."""
    for line in lines:
        found = _BANNER.search(line)
        if found is not None:
            number, build = found.groups()
            major, rest = divmod(int(number), 10_000)
            return Version(major, *divmod(rest, 100), int(build) if build else None)
    return None


def progress_in(line: str) -> str | None:
    """What a line of output tells of how far the build is, None where it does not."""
    found = _TOLD.search(line)
    return found.group(1) if found is not None else None


def errors_in(lines: Iterable[str]) -> str | None:
    """The errors in trtexec's output, None where there are none."""
    found = [match.group(1) for line in lines if (match := _ERROR.search(line)) is not None]
    return "; ".join(found) or None


def other_gpu(recipe: Recipe, lines: Iterable[str]) -> str | None:
    """Why the GPU that trtexec took is not the recipe's, None where it is or none is told.

    A slice of a GPU (MIG) has more to its name than the whole.
    """
    text = "\n".join(lines)
    device, capability = _DEVICE.search(text), _CAPABILITY.search(text)
    if device is None or capability is None:
        return None
    seen = device.group(1).strip(), (int(capability.group(1)), int(capability.group(2)))
    wanted = recipe.gpu_name, recipe.compute_capability
    if seen[0].startswith(wanted[0]) and seen[1] == wanted[1]:
        return None
    return f"the engine is for {wanted[0]} {wanted[1]}, trtexec took {seen[0]} {seen[1]}"


def _shapes(shapes: Iterable[tuple[InputShapes, Shape]]) -> str:
    return ",".join(f"{each.name}:{'x'.join(map(str, shape))}" for each, shape in shapes)
