"""The embedded server on GPUs: what is refused before it starts, and what its models are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.commands import hosts
from optimizer.commands.hosts import Needs, require_host, require_server
from optimizer.commands.packages import require_packages
from optimizer.commands.platforms import refuse_unfit
from optimizer.configuration.hosting import EmbeddedHost
from optimizer.configuration.runtimes import onnxruntime_session
from optimizer.errors import RequirementError, UsageError
from optimizer.machine.slots import Slot
from optimizer.study.decision import ConfirmedCapacity
from optimizer.triton.embedded import EmbeddedRuntime
from tests.unit.exported import Exportable
from tests.unit.test_server_schema import ON_CPU, ON_GPUS, load

RUNTIME = EmbeddedRuntime(Path("/tritonserver"), (), (("PATH", "/bin"),))
SLOT = Slot((0,), (0,), ("GPU-2", "GPU-1"))
WITHOUT_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime is a build for CUDA",
)


@pytest.fixture(autouse=True)
def _server_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "find_embedded_runtime", lambda: RUNTIME)


def test_a_server_sees_the_gpus_of_its_slot_alone() -> None:
    assert RUNTIME.environment_with(SLOT.gpu_uuids)["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-1"
    assert RUNTIME.environment_with(())["CUDA_VISIBLE_DEVICES"] == ""


def test_engines_are_refused_by_the_backend_that_they_lack(tmp_path: Path) -> None:
    space = load(tmp_path, "server: {gpus: all}\n" + ON_GPUS)
    with pytest.raises(RequirementError, match="embedded server has no backend 'tensorrt', only"):
        require_host(space, SLOT)


@WITHOUT_CUDA
def test_a_build_for_the_cpu_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    space = load(tmp_path, "server: {gpus: all}\n" + ON_CPU)
    with pytest.raises(
        RequirementError,
        match=r"onnxruntime cannot use the GPU: [\d.]+ is a build without its",
    ) as refused:
        require_host(space, SLOT)
    assert "onnxruntime-gpu" in str(refused.value)


def test_each_runtime_looks_for_its_gpu_with_the_variables_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sees = "import os; sys.exit(os.environ['CUDA_VISIBLE_DEVICES'] + ' seen')"
    monkeypatch.setattr(hosts, "_CUDA_CHECKS", {"pytorch": (sees, "another PyTorch")})
    needs = Needs(("bert",), ("pytorch", "tokenizers"))
    with pytest.raises(RequirementError, match="pytorch cannot use the GPU: GPU-2,GPU-1 seen"):
        require_server(EmbeddedHost(), needs, SLOT)
    assert require_server(EmbeddedHost(), needs, Slot((0,), (0,))) == "embedded"
    monkeypatch.setattr(hosts, "_CUDA_CHECKS", {"pytorch": ("pass", "")})
    assert require_server(EmbeddedHost(), needs, SLOT) == "embedded"


@pytest.mark.parametrize(("server", "extra"), [("embedded", "embedded"), ("docker", "gpu")])
def test_what_is_missing_comes_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, extra: str
) -> None:
    space = load(tmp_path, f"server: {{launcher: {server}, gpus: all}}\n" + ON_CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RequirementError, match=rf"triton-cost-optimizer\[{extra}\]"):
        require_packages(space)


def test_no_platform_gets_an_image_for_it(tmp_path: Path) -> None:
    Exportable(tmp_path)
    reading = read_study(tmp_path / "results", "one")
    on_gpu = replace(reading, machine=replace(reading.machine, gpus=("NVIDIA T4",)))
    finding = cast(ConfirmedCapacity, None)
    refuse_unfit("bundle", on_gpu, finding)
    with pytest.raises(UsageError, match="kubernetes: no image is made for the embedded server on"):
        refuse_unfit("kubernetes", on_gpu, finding)


def write_model(folder: Path) -> None:
    tensors = [onnx.helper.make_tensor_value_info(name, 1, [None]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "g", tensors[:1], tensors[1:]
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), folder / "model.onnx")


def open_session(folder: Path, gpu: int | None) -> Any:
    return onnxruntime_session.open_session(str(folder), ["y"], "fp32", 1, gpu)


@WITHOUT_CUDA
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
def test_a_model_on_a_gpu_is_never_executed_on_the_cpu(tmp_path: Path) -> None:
    write_model(tmp_path)
    [y] = open_session(tmp_path, None)({"x": np.ones(2, np.float32)})
    assert y.tolist() == [-1, -1]
    with pytest.raises(RuntimeError, match=r"ONNX Runtime [\d.]+ cannot use the GPU: it needs"):
        open_session(tmp_path, 0)


def test_the_cuda_provider_has_its_device_without_tf32_and_without_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}

    class Session:
        def __init__(self, path: str, options: object, **given: Any) -> None:
            made.update(given, path=path)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    open_session(tmp_path, 1)
    assert made == {
        "path": str(tmp_path / "model.onnx"),
        "providers": [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})],
        "enable_fallback": 0,
    }
