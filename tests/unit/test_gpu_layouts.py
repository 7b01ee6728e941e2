"""The published benchmark's three ways to lay instances out over GPUs, as Triton is told them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.model_space import Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.files.shipped import shipped
from optimizer.triton.model_config import model_config, to_text
from optimizer.triton.repository import ModelRepository
from optimizer.triton.server_options import option_flags
from tests.unit.test_gpu_spaces import ONE_POINT, T4
from tests.unit.test_model_config import OUTPUT, PAYLOADS

GOLDEN = Path(__file__).parents[1] / "golden"
TEMPLATES = shipped("model_repository_templates")
ENGINE: dict[str, Sequence[Value]] = {
    **ONE_POINT,
    "max_batch_size": (16,),
    "preferred_batch_sizes": ((4, 16),),
    "max_queue_delay_us": (100,),
    "cuda_graphs": (True,),
    "execution_policy": ("blocking",),
}
RANKER: dict[str, Sequence[Value]] = {
    **ONE_POINT,
    "runtime": ("onnxruntime",),
    "batching": (False,),
    "instance_count": (7,),
}


def only_config(gpus: int, **models: dict[str, Sequence[Value]]) -> ServingConfig:
    parameters = [p for name, own in models.items() for p in parameters_in_order(name, own)]
    space = SearchSpace(tuple(parameters), Hardware(8, 64_000, (T4,) * gpus), Limits())
    assert len(space) == 1
    return space.config(space.at(0))


LAYOUTS = {
    "same_on_every_gpu": only_config(4, bert={**ENGINE, "instance_count": (2,)}),
    "another_on_gpu_0": only_config(4, bert={**ENGINE, "instance_count": ((1, 2, 2, 2),)}),
    "two_models_on_one_gpu": only_config(
        1, bert={**ENGINE, "instance_count": (2,), "rate_limit": (3,)},
        ranker={**RANKER, "rate_limit": (3,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout(layout: str) -> None:
    config = LAYOUTS[layout]
    text = f"# tritonserver {' '.join(option_flags(config.server))}\n"
    for model in config.models:
        template = TEMPLATES / model.artifact.backend / "config.pbtxt"
        text += "\n" + to_text(model_config(model, PAYLOADS, [OUTPUT], template))
    assert text == (GOLDEN / f"layout_{layout}.txt").read_text()


def test_a_backend_of_tritons_own_needs_no_python(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "model.plan").write_bytes(b"plan")
    (artifact / "plan.json").write_text("{}")
    [model] = LAYOUTS["same_on_every_gpu"].models
    repository = ModelRepository(tmp_path / "repository", TEMPLATES)
    repository.write(model, artifact, PAYLOADS, [OUTPUT])
    version = tmp_path / "repository" / "bert" / "1"
    assert sorted(path.name for path in version.iterdir()) == ["model.plan", "plan.json"]
