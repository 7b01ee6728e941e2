"""Build one TensorRT engine: build_script.py RECIPE GRAPH_FOLDER PLAN_FOLDER TIMING_FOLDER.

Needs the standard library and TensorRT's Python package alone, 10.12 or later or 11: it runs beside
this package, and alone inside NVIDIA's tensorrt image. RECIPE is the JSON of
`optimizer.artifacts.engines.recipe.Recipe`. What it has to say goes to standard output as lines of
JSON with one key each: {"progress": TEXT}, and in the end {"facts": {...}} or {"failure": TEXT}.
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
    """Why there is no engine."""


def say(kind: str, content: object) -> None:
    """Write one line of JSON."""
    sys.stdout.write(json.dumps({kind: content}) + "\n")
    sys.stdout.flush()


class Log:
    """TensorRT's log: all of it goes to standard error, its errors are kept too."""

    def __init__(self, trt: Any) -> None:
        super().__init__()
        severity = trt.ILogger.Severity
        self._serious = (severity.INTERNAL_ERROR, severity.ERROR)
        self._told = (*self._serious, severity.WARNING)
        self.errors: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        """TensorRT calls this, from its own threads too."""
        if severity in self._serious:
            self.errors.append(text.strip())
        if severity in self._told:
            sys.stderr.write(f"{text}\n")


class BuildProgress:
    """Says where the build is, now and then: phases lie within phases, and have steps."""

    def __init__(self) -> None:
        super().__init__()
        self._phases: dict[str, tuple[int, int]] = {}
        self._said_at = -_PROGRESS_SECONDS

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """TensorRT enters a phase of `num_steps` steps."""
        del parent_phase
        self._phases[phase_name] = (0, num_steps)
        self._say()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """TensorRT has done step `step` of a phase. Returns that it shall go on."""
        _, steps = self._phases.get(phase_name, (0, 0))
        self._phases[phase_name] = (step + 1, steps)
        self._say()
        return True

    def phase_finish(self, phase_name: str) -> None:
        """TensorRT leaves a phase."""
        self._phases.pop(phase_name, None)

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at >= _PROGRESS_SECONDS:
            self._said_at = now
            # A copy: TensorRT may start phases on several threads.
            phases = list(self._phases.items())
            parts = [f"{name} {done}/{steps}" for name, (done, steps) in phases]
            say("progress", ", ".join(parts))


def implementing(implementation: type, interface: type) -> type:
    """`implementation` as a class that TensorRT takes for its own `interface`."""
    return type(implementation.__name__, (implementation, interface), {})


def visible_gpu() -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the first GPU that CUDA sees; None without CUDA's driver."""
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

    A slice of a GPU (MIG) has more to its name than the whole.
    """
    seen = visible_gpu()
    wanted = recipe["gpu_name"], tuple(recipe["compute_capability"])
    if seen is not None and not (seen[0].startswith(wanted[0]) and seen[1] == wanted[1]):
        raise BuildError(
            f"the engine is for {wanted[0]} {wanted[1]}, CUDA sees {seen[0]} {seen[1]}"
        )


def check_version(version: str) -> None:
    """Raise BuildError for a TensorRT that cannot build what is asked."""
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise BuildError(f"TensorRT must be {least} or later, got {version}")


def parse(trt: Any, builder: Any, log: Any, onnx: Path) -> Any:
    """The network of an ONNX file; it finds its external data beside itself."""
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = [f"node {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in errors]
        raise BuildError("; ".join(told) or f"{onnx.name} cannot be parsed")
    return network


def add_profile(builder: Any, config: Any, inputs: list[dict[str, Any]]) -> None:
    """Have the engine take every shape between the least and the most, optimal for one."""
    profile = builder.create_optimization_profile()
    for each in inputs:
        shapes = [tuple(each[bound]) for bound in ("least", "optimal", "most")]
        try:
            profile.set_shape(each["name"], *shapes)
        except ValueError as error:
            raise BuildError(f"{each['name']}: shapes {shapes} do not fit: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"the optimisation profile is not valid: {inputs}")


def configure(trt: Any, builder: Any, recipe: dict[str, Any]) -> Any:
    """The builder's settings by the recipe."""
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
    """Use what earlier builds have timed; what does not fit here is begun anew.

    Returns:
        The cache, which must live as long as the build.
    """
    known = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        say("progress", f"{file.name} is of another TensorRT or GPU: timing anew")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build(trt: Any, recipe: dict[str, Any], log: Any, folders: list[Path]) -> None:
    """Write the plan, and the timing cache with what was learnt."""
    graph, plans, timings = folders
    check_version(trt.__version__)
    check_gpu(recipe)
    builder = trt.Builder(log)
    say("progress", f"TensorRT {trt.__version__} reads the graph")
    network = parse(trt, builder, log, graph / recipe["onnx"])
    config = configure(trt, builder, recipe)
    config.progress_monitor = implementing(BuildProgress, trt.IProgressMonitor)()
    kept_alive = attach_timing_cache(config, timings / recipe["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError("TensorRT found no engine for this graph")
    (plans / recipe["plan"]).write_bytes(plan)
    (timings / recipe["timing_cache"]).write_bytes(config.get_timing_cache().serialize())
    del kept_alive


def main(arguments: list[str]) -> int:
    """Build; the exit code is 0 when there is an engine."""
    import tensorrt as trt

    recipe = json.loads(arguments[0])
    log = implementing(Log, trt.ILogger)(trt)
    try:
        build(trt, recipe, log, [Path(argument) for argument in arguments[1:]])
    except Exception as error:  # noqa: BLE001 - whatever TensorRT raises is why there is no engine
        reason = str(error) if isinstance(error, BuildError) else f"{type(error).__name__}: {error}"
        say("failure", "; ".join([reason, *log.errors]))
        return 1
    facts = {
        "tensorrt": trt.__version__,
        **{k: recipe[k] for k in ("gpu_name", "compute_capability")},
    }
    say("facts", facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
