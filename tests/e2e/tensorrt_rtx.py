"""TensorRT for RTX: NVIDIA's parser and builder without a GPU, in the place of `tensorrt`.

It is proprietary, and so a package for tests that nothing ships. What it makes of a graph is read
in its log.
"""

from __future__ import annotations

import atexit
import os
import re
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optimizer.artifacts.engines.build_script import implementing

VERSION = "11.4"
"""The TensorRT that has the same API. It counts versions of its own, which our builder refuses."""

LOG_FILE = "builder.log"
"""Lies beside the plan."""

FUSED_ATTENTION = "_gemm_mha"
"""How the names of layers begin that execute both products of an attention and the softmax."""

Capability = tuple[int, int]

_ROOT = Path(__file__).parents[2]
_CPU_SECONDS = "CPU seconds of the build: "
_LAYER = re.compile(
    r"^Name: (.*?), LayerType: .*?, Inputs: (.*?), Constants: (.*?), Outputs: .*, Metadata: (.*)$",
    re.MULTILINE,
)


def install(folder: Path, capabilities: Sequence[Capability]) -> None:
    """Write a package `tensorrt` into `folder`, for build scripts that import from there.

    Args:
        capabilities: that every engine is built for, whatever GPU its recipe names.
    """
    about = folder / f"tensorrt-{VERSION}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {VERSION}\n")
    (folder / "tensorrt.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.append({os.fspath(_ROOT)!r})\n"
        "from tests.e2e.tensorrt_rtx import LOG_FILE, as_tensorrt\n"
        "plans = Path(sys.argv[3])\n"
        f"sys.modules[__name__] = as_tensorrt({list(capabilities)}, plans / LOG_FILE)\n"
    )


def as_tensorrt(capabilities: Sequence[Capability], log: Path) -> ModuleType:
    """Return the package by TensorRT's name and version; `log` receives all that it says."""
    import tensorrt_rtx_bindings as rtx

    module = ModuleType("tensorrt")
    module.__dict__.update(rtx.__dict__)
    module.__dict__["__version__"] = VERSION
    module.__dict__["Builder"] = lambda own: _Builder(rtx, own, capabilities, log)
    return module


class _Log:
    """Writes every message to a file and passes it on."""

    def __init__(self, own: Any, file: Path) -> None:
        super().__init__()
        self._own = own
        self._file = file.open("w", buffering=1)
        atexit.register(self._close)

    def log(self, severity: Any, text: str) -> None:
        self._file.write(f"{text}\n")
        self._own.log(severity, text)

    def _close(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._file.write(f"\n{_CPU_SECONDS}{used.ru_utime + used.ru_stime:.2f}\n")
        self._file.close()


class _Builder:
    """A builder that is told for which GPUs it builds, where TensorRT asks CUDA."""

    def __init__(self, rtx: Any, own: Any, capabilities: Sequence[Capability], log: Path) -> None:
        self._rtx, self._capabilities = rtx, capabilities
        self._log = implementing(_Log, rtx.ILogger)(own, log)
        self._builder = rtx.Builder(self._log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def create_builder_config(self) -> Any:
        config = self._builder.create_builder_config()
        config.num_compute_capabilities = len(self._capabilities)
        for at, (major, minor) in enumerate(self._capabilities):
            capability = getattr(self._rtx.ComputeCapability, f"SM{major}{minor}")
            config.set_compute_capability(capability, at)
        config.profiling_verbosity = self._rtx.ProfilingVerbosity.DETAILED
        return config


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        inputs, constants: as the log describes them, with their types.
        nodes: of the ONNX graph, that the layer executes.
    """

    name: str
    inputs: str
    constants: str
    nodes: frozenset[str]

    @property
    def is_attention(self) -> bool:
        """Whether one kernel executes both products of an attention and the softmax."""
        return self.name.startswith(FUSED_ATTENTION)

    @property
    def reads_int8(self) -> bool:
        """Whether one of the inputs is INT8."""
        return "Datatype: Int8" in self.inputs

    @property
    def multiplies_int8(self) -> bool:
        """Whether inputs and weights are INT8."""
        return self.reads_int8 and "Datatype: Int8" in self.constants


def layers(log: str) -> Iterator[Layer]:
    """Yield the layers that the builder lists at the end of its log."""
    _, _, listed = log.partition("\nLayers:\n")
    for name, inputs, constants, metadata in _LAYER.findall(listed):
        nodes = frozenset(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata))
        yield Layer(name, inputs, constants, nodes)


def cpu_seconds(log: str) -> float:
    """Return the CPU time of the process that built the engine."""
    return float(log.rpartition(_CPU_SECONDS)[2])
