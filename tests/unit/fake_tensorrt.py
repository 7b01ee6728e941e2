"""A fake `tensorrt` package that records what is used of it, in the layouts of both majors.

It stands for the Python bindings alone: it "builds" a plan that tells what it was asked. Which
names the real bindings have is not this file's to say: see `test_engines_bindings`. What NVIDIA's
parser and builder refuse is shown by themselves: see `tests/e2e/test_nvidia_builder.py`.
"""

from __future__ import annotations

import enum
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VERSIONS = {10: "10.16.1.11", 11: "11.4.0.106"}
CREATION_FLAGS = {10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, 11: {"STRONGLY_TYPED": 0}}
BUILDER_FLAGS = {10: {"FP16": 0, "INT8": 1, "TF32": 6, "BF16": 17}, 11: {"TF32": 6}}
MEMORY_POOLS = {10: {"WORKSPACE": 0}, 11: {"WORKSPACE": 0}}
TIMING_HEADER = b"timings of "


@dataclass
class Recording:
    """What was used, as "Class.attribute", and what was asked for."""

    used: set[str] = field(default_factory=set)
    network_flags: int = 0
    parsed: str = ""
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    workspace_bytes: int | None = None
    optimization_level: int = 3
    tf32: bool = True
    timings_accepted: list[bool] = field(default_factory=list)
    strict: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Behaviour:
    """How it goes wrong."""

    parser_errors: tuple[tuple[str, str, str], ...] = ()
    log_error: str | None = None
    no_plan: bool = False
    empty_plan: bool = False
    raises: str | None = None
    hangs_seconds: float = 0.0
    version: str | None = None


AS_IT_SHOULD_BE = Behaviour()


def fake_tensorrt(major: int, recording: Recording, behaviour: Behaviour = AS_IT_SHOULD_BE) -> Any:
    """A module of TensorRT 10 or 11."""
    world = _World(major, recording, behaviour)
    severity = world.recorded("ILogger.Severity", _Severity)
    recording.used |= {"ILogger.log", *(f"IProgressMonitor.{name}" for name in _MONITOR_METHODS)}
    module = SimpleNamespace(
        __version__=world.version,
        ILogger=type("ILogger", (), {"Severity": severity}),
        IProgressMonitor=type("IProgressMonitor", (), {}),
        NetworkDefinitionCreationFlag=world.flags("NetworkDefinitionCreationFlag", CREATION_FLAGS),
        BuilderFlag=world.flags("BuilderFlag", BUILDER_FLAGS),
        MemoryPoolType=world.flags("MemoryPoolType", MEMORY_POOLS),
        Builder=lambda logger: world.recorded("Builder", _Builder(world, logger)),
        OnnxParser=lambda network, logger: world.recorded("OnnxParser", _OnnxParser(world)),
    )
    return world.recorded("tensorrt", module)


_MONITOR_METHODS = ("phase_start", "step_complete", "phase_finish")
"""These, and ILogger.log, are called by TensorRT and not by us: ours must have the same names."""


@dataclass(frozen=True)
class _World:
    """One fake package: its version, what it notes, and how it goes wrong."""

    major: int
    recording: Recording
    behaviour: Behaviour

    @property
    def version(self) -> str:
        return self.behaviour.version or VERSIONS[self.major]

    def flags(self, name: str, members: dict[int, dict[str, int]]) -> Any:
        return self.recorded(name, SimpleNamespace(**members[self.major]))

    def recorded(self, name: str, real: Any) -> Any:
        """`real`, with every attribute that is read or set noted under the class's name."""
        used = self.recording.used

        class Recorded:
            def __getattr__(self, attribute: str) -> Any:
                value = getattr(real, attribute)
                used.add(f"{name}.{attribute}")
                return value

            def __setattr__(self, attribute: str, value: Any) -> None:
                getattr(real, attribute)  # the bindings refuse what they do not have, too
                used.add(f"{name}.{attribute}")
                setattr(real, attribute, value)

        return Recorded()


@dataclass
class _Builder:
    world: _World
    logger: Any

    def create_network(self, flags: int) -> Any:
        self.world.recording.network_flags = flags
        return self.world.recorded("INetworkDefinition", SimpleNamespace())

    def create_builder_config(self) -> Any:
        return self.world.recorded("IBuilderConfig", _Config(self.world))

    def create_optimization_profile(self) -> Any:
        return self.world.recorded("IOptimizationProfile", _Profile(self.world))

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        world, behaviour = self.world, self.world.behaviour
        world.recording.optimization_level = config.builder_optimization_level
        _go_through_phases(config.progress_monitor, behaviour.hangs_seconds)
        self.logger.log(_Severity.WARNING, "a warning")
        if behaviour.log_error is not None:
            self.logger.log(_Severity.ERROR, behaviour.log_error)
        if behaviour.raises is not None:
            raise RuntimeError(behaviour.raises)
        if behaviour.no_plan or behaviour.empty_plan:
            return b"" if behaviour.empty_plan else None
        return b"plan of " + world.version.encode()


@dataclass
class _OnnxParser:
    world: _World

    @property
    def num_errors(self) -> int:
        return len(self.world.behaviour.parser_errors)

    def get_error(self, index: int) -> Any:
        node, operator, text = self.world.behaviour.parser_errors[index]
        error = SimpleNamespace(
            node_name=lambda: node, node_operator=lambda: operator, desc=lambda: text
        )
        return self.world.recorded("ParserError", error)

    def parse_from_file(self, model: str) -> bool:
        self.world.recording.parsed = model
        return Path(model).is_file() and not self.num_errors


@dataclass
class _Profile:
    world: _World

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        self.world.recording.shapes[input] = (min, opt, max)


@dataclass
class _TimingCache:
    world: _World
    content: bytes

    @property
    def fits(self) -> bool:
        return self.content in (b"", self.serialize())

    def serialize(self) -> bytes:
        return TIMING_HEADER + self.world.version.encode()


@dataclass
class _Config:
    world: _World
    builder_optimization_level: int = 3
    progress_monitor: Any = None
    timings: Any = None

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
        assert pool == MEMORY_POOLS[self.world.major]["WORKSPACE"]
        self.world.recording.workspace_bytes = pool_size

    def clear_flag(self, flag: int) -> None:
        assert flag == BUILDER_FLAGS[self.world.major]["TF32"]
        self.world.recording.tf32 = False

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        cache = _TimingCache(self.world, serialized_timing_cache)
        return self.world.recorded("ITimingCache", cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        recording = self.world.recording
        recording.strict.append(not ignore_mismatch)
        fits = bool(cache.fits)
        recording.used.discard("ITimingCache.fits")  # TensorRT's own question, not the builder's
        recording.timings_accepted.append(fits)
        if fits:
            self.timings = cache
        return fits

    def get_timing_cache(self) -> Any:
        return self.timings


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


def _go_through_phases(monitor: Any, hangs_seconds: float) -> None:
    monitor.phase_start("Building Engine", None, 2)
    monitor.phase_start("Timing kernels", "Building Engine", 3)
    for step in range(3):
        assert monitor.step_complete("Timing kernels", step)
    monitor.phase_finish("Timing kernels")
    time.sleep(hangs_seconds)
    assert monitor.step_complete("Building Engine", 0)
    monitor.phase_finish("Building Engine")


def install_beside(folder: Path, major: int, **behaviour: Any) -> None:
    """Write a `tensorrt.py` into `folder` that is the fake, for processes of their own."""
    here = Path(__file__).parents[2]
    (folder / "tensorrt.py").write_text(
        f"import json, sys\n"
        f"sys.path.insert(0, {os.fspath(here)!r})\n"
        f"from tests.unit.fake_tensorrt import Behaviour, Recording, fake_tensorrt\n"
        f"behaviour = Behaviour(**json.loads({json.dumps(behaviour)!r}))\n"
        f"sys.modules[__name__] = fake_tensorrt({major}, Recording(), behaviour)\n"
    )
