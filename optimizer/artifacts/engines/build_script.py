"""Build one TensorRT engine: build_script.py RECIPE GRAPH_FOLDER PLAN_FOLDER TIMING_FOLDER.

Needs only the standard library and TensorRT's Python package, 10.12 or later: inside NVIDIA's
tensorrt image it runs without this package. RECIPE is the JSON of
`optimizer.artifacts.engines.recipe.Recipe`. Standard output receives lines of JSON with one key
each: {"progress": TEXT}, and in the end {"facts": {...}} or {"failure": TEXT}.
"""

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

_LEAST_VERSION = (10, 12)
_MIB = 2**20
_PROGRESS_SECONDS = 1.0
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver API."""


class BuildError(Exception):
    """The engine could not be built; the message says why."""


def write_message(kind: str, content: object) -> None:
    """Write one line of JSON to standard output."""
    sys.stdout.write(json.dumps({kind: content}) + "\n")
    sys.stdout.flush()


class Log:
    """TensorRT's log: warnings and errors go to standard error, and errors are kept."""

    def __init__(self, trt: Any) -> None:
        super().__init__()
        severity = trt.ILogger.Severity
        self._error_levels = (severity.INTERNAL_ERROR, severity.ERROR)
        self._printed_levels = (*self._error_levels, severity.WARNING)
        self.errors: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        """Receive a message of TensorRT, on any of its threads."""
        if severity in self._error_levels:
            self.errors.append(text.strip())
        if severity in self._printed_levels:
            sys.stderr.write(f"{text}\n")


class BuildProgress:
    """Report the phases of the build, which are nested and have steps, once a second."""

    def __init__(self) -> None:
        super().__init__()
        self._phases: dict[str, tuple[int, int]] = {}
        self._reported_at = -_PROGRESS_SECONDS

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Note that TensorRT enters a phase of `num_steps` steps."""
        del parent_phase
        self._phases[phase_name] = (0, num_steps)
        self._report()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Note that TensorRT has done step `step` of a phase; return True to continue."""
        _, steps = self._phases.get(phase_name, (0, 0))
        self._phases[phase_name] = (step + 1, steps)
        self._report()
        return True

    def phase_finish(self, phase_name: str) -> None:
        """Note that TensorRT leaves a phase."""
        self._phases.pop(phase_name, None)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported_at >= _PROGRESS_SECONDS:
            self._reported_at = now
            # A copy: TensorRT may start phases on several threads.
            phases = list(self._phases.items())
            parts = [f"{name} {done}/{steps}" for name, (done, steps) in phases]
            write_message("progress", ", ".join(parts))


def implementing(implementation: type, interface: type) -> type:
    """Return a subclass of `implementation` and of TensorRT's `interface`."""
    return type(implementation.__name__, (implementation, interface), {})


def visible_gpu() -> tuple[str, tuple[int, int]] | None:
    """Return name and compute capability of CUDA's first GPU; None without CUDA's driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    capability = []
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise BuildError("CUDA sees no GPU")
    cuda.cuDeviceGetName(name, len(name), device)
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return name.value.decode(), (capability[0], capability[1])


def check_gpu(recipe: dict[str, Any]) -> None:
    """Raise BuildError where the GPU is not the one that the engine is for.

    The name of a MIG instance begins with the name of its GPU.
    """
    gpu = visible_gpu()
    name, capability = recipe["gpu_name"], tuple(recipe["compute_capability"])
    if gpu is not None and not (gpu[0].startswith(name) and gpu[1] == capability):
        raise BuildError(f"the engine is for {name} {capability}, CUDA sees {gpu[0]} {gpu[1]}")


def check_version(version: str) -> None:
    """Raise BuildError for a TensorRT that is too old."""
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise BuildError(f"TensorRT must be {least} or later, got {version}")


def parse(trt: Any, builder: Any, log: Any, onnx: Path) -> Any:
    """Return the network of an ONNX file, whose external data lies beside it."""
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        texts = [f"node {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in errors]
        log.errors.clear()  # the parser has logged the same
        raise BuildError("; ".join(texts) or f"{onnx.name} cannot be parsed")
    return network


def add_profile(builder: Any, config: Any, inputs: list[dict[str, Any]]) -> None:
    """Add the optimisation profile: minimum, optimal and maximum shape of every input."""
    profile = builder.create_optimization_profile()
    for each in inputs:
        profile.set_shape(each["name"], *(tuple(each[b]) for b in ("least", "optimal", "most")))
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"the optimisation profile is not valid: {inputs}")


def configure(trt: Any, builder: Any, recipe: dict[str, Any]) -> Any:
    """Return the builder's configuration for the recipe."""
    config = builder.create_builder_config()
    config.builder_optimization_level = recipe["optimization_level"]
    if recipe["workspace_mib"] is not None:
        size_bytes = recipe["workspace_mib"] * _MIB
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size_bytes)
    if not recipe["tf32"]:  # it is on by default
        config.clear_flag(trt.BuilderFlag.TF32)
    add_profile(builder, config, recipe["inputs"])
    return config


def attach_timing_cache(config: Any, file: Path) -> Any:
    """Use the timing cache of earlier builds, or a new one where it does not fit.

    Returns:
        The cache, which must live as long as the build.
    """
    content = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        write_message("progress", f"{file.name} is of another TensorRT or GPU: timing anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build(trt: Any, recipe: dict[str, Any], log: Any, folders: list[Path]) -> None:
    """Write the plan and the extended timing cache."""
    graph, plans, timings = folders
    check_version(trt.__version__)
    check_gpu(recipe)
    builder = trt.Builder(log)
    write_message("progress", f"TensorRT {trt.__version__} reads the graph")
    network = parse(trt, builder, log, graph / recipe["onnx"])
    config = configure(trt, builder, recipe)
    config.progress_monitor = implementing(BuildProgress, trt.IProgressMonitor)()
    kept_alive = attach_timing_cache(config, timings / recipe["timing_cache"])
    log.errors.clear()  # a timing cache of another GPU is logged as an error, and has been replaced
    plan = builder.build_serialized_network(network, config)
    if plan is None or not memoryview(plan).nbytes:
        raise BuildError("TensorRT found no engine for this graph")
    (plans / recipe["plan"]).write_bytes(plan)
    (timings / recipe["timing_cache"]).write_bytes(config.get_timing_cache().serialize())
    del kept_alive


def main(arguments: list[str]) -> int:
    """Build the engine and return the exit code, 0 on success."""
    import tensorrt as trt

    recipe = json.loads(arguments[0])
    log = implementing(Log, trt.ILogger)(trt)
    try:
        build(trt, recipe, log, [Path(argument) for argument in arguments[1:]])
    except Exception as error:  # noqa: BLE001 - whatever TensorRT raises is why there is no engine
        reason = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        write_message("failure", "; ".join([reason, *log.errors]))
        return 1
    facts = {
        "tensorrt": trt.__version__,
        **{k: recipe[k] for k in ("gpu_name", "compute_capability")},
    }
    write_message("facts", facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
