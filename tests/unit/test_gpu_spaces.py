"""Spaces whose models run on GPUs; no GPU is needed to know what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from optimizer.configuration.hardware import Gpu, Hardware, processor_lacks
from optimizer.configuration.model_space import EmptySpaceError, Limits
from optimizer.configuration.named_parameters import parameters_in_order
from optimizer.configuration.parameter_definition import Value
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    EngineProfile,
    InstanceGroup,
    ModelServing,
    ServerOptions,
    ServingConfig,
    describe,
)
from optimizer.study.gated_artifact import GatePlan
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import Payloads, TensorSpec
from tests.unit.studies import VALUES

PAYLOADS = Payloads((TensorSpec("x", "INT64", (None,)),), LengthDistribution((16, 128), (1.0, 1.0)))
T4 = Gpu("GPU-0", "Tesla T4", (7, 5), 15360)
A10G = Gpu("GPU-1", "NVIDIA A10G", (8, 6), 23028)
TWO_T4 = Hardware(cores=8, memory_mib=64_000, gpus=(T4, T4))
ONE_POINT: dict[str, Sequence[Value]] = {
    "runtime": ("tensorrt",),
    "precision": ("fp16",),
    "batching": (True,),
    "max_batch_size": (8,),
    "preferred_batch_sizes": ("none",),
    "max_queue_delay_us": (0,),
    "instance_count": (1,),
    "intra_op_threads": (1,),
    "padding": ("max",),
}


def gpu_space(
    hardware: Hardware = TWO_T4, limits: Limits | None = None, **values: Sequence[Value]
) -> SearchSpace:
    parameters = parameters_in_order("bert", {**ONE_POINT, **values})
    return SearchSpace(parameters, hardware, limits or Limits())


def configs(space: SearchSpace) -> list[ServingConfig]:
    return [space.config(space.at(row)) for row in range(len(space))]


def models(space: SearchSpace) -> list[ModelServing]:
    return [model for config in configs(space) for model in config.models]


def test_a_number_counts_for_every_gpu() -> None:
    [model] = models(gpu_space(instance_count=(2,)))
    assert model.groups == (InstanceGroup("KIND_GPU", 2, (0, 1)),)
    assert model.instance_count == 4


def test_a_list_has_a_number_for_each_gpu() -> None:
    three = Hardware(8, 64_000, (T4, T4, T4))
    [model] = models(gpu_space(three, instance_count=((2, 1, 2),)))
    assert model.groups == (
        InstanceGroup("KIND_GPU", 2, (0, 2)),
        InstanceGroup("KIND_GPU", 1, (1,)),
    )
    assert "2 on GPU 0/2, 1 on GPU 1" in describe(ServingConfig((model,)))


def test_a_gpu_may_be_left_out() -> None:
    [model] = models(gpu_space(instance_count=((0, 3),)))
    assert model.groups == (InstanceGroup("KIND_GPU", 3, (1,)),)


def test_a_list_that_says_what_a_number_says_is_no_second_point() -> None:
    assert len(gpu_space(instance_count=(2, (2, 2)))) == 1


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1), (0, 0)])
def test_a_list_that_does_not_fit_the_gpus_is_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(EmptySpaceError, match="one number for each of 2 GPUs"):
        len(gpu_space(instance_count=(counts,)))


def test_a_list_is_refused_where_there_is_no_gpu() -> None:
    hardware = Hardware(8, 64_000)
    with pytest.raises(EmptySpaceError, match="one number for each of 0 GPUs"):
        len(gpu_space(hardware, runtime=("openvino",), precision=("fp32",), instance_count=((1,),)))


def test_what_has_its_own_backend_is_not_hosted_in_python() -> None:
    space = gpu_space(runtime=("tensorrt", "onnxruntime", "pytorch"))
    found = {model.artifact.runtime: model.artifact.backend for model in models(space)}
    assert found == {"tensorrt": "tensorrt", "onnxruntime": "onnxruntime", "pytorch": "python"}


def test_a_server_without_other_backends_hosts_in_python_what_can_be() -> None:
    embedded = replace(TWO_T4, only_python_backend=True)
    space = gpu_space(embedded, runtime=("tensorrt", "onnxruntime", "pytorch"))
    found = {model.artifact.runtime: model.artifact.backend for model in models(space)}
    assert found == {"tensorrt": "tensorrt", "onnxruntime": "python", "pytorch": "python"}


def test_a_runtime_of_the_cpu_has_no_place_on_a_gpu() -> None:
    with pytest.raises(EmptySpaceError, match="the runtime serves the precision"):
        len(gpu_space(runtime=("openvino",)))


def test_cpu_threads_are_not_searched_on_a_gpu() -> None:
    assert len(gpu_space(intra_op_threads=(1, 2, 64))) == 1


def test_one_engine_serves_every_batch_size_and_one_serves_requests_alone() -> None:
    space = gpu_space(batching=(False, True), max_batch_size=(4, 8, 16, 32))
    profiles = {(model.batching is None, model.artifact.profile) for model in models(space)}
    assert profiles == {(True, EngineProfile(1, 1)), (False, EngineProfile(16, 32))}
    assert len(space.artifacts) == 2


def test_without_batching_there_is_no_choice_of_engines() -> None:
    both = ("shared", "per_batch_size")
    assert len(gpu_space(batching=(False,), max_batch_size=(4, 8), engine_profile=both)) == 1
    assert len(gpu_space(batching=(False, True), engine_profile=both)) == 3


def test_a_space_with_cuda_graphs_has_them_judged_and_measured() -> None:
    for values in ((False,), (False, True)):
        space = gpu_space(cuda_graphs=values)
        [spec] = space.artifacts
        plan = GatePlan.of(space.use_of(spec), PAYLOADS, 1)
        assert plan.cuda_graphs == any(values)


def test_or_each_batch_size_has_an_engine_of_its_own() -> None:
    space = gpu_space(
        batching=(False, True), max_batch_size=(4, 8), engine_profile=("per_batch_size",)
    )
    found = {model.max_batch_size: model.artifact.profile for model in models(space)}
    assert found == {size: EngineProfile(size, size) for size in (1, 4, 8)}
    assert len({spec.label for spec in space.artifacts}) == 3


def test_an_engine_without_batching_takes_one_request() -> None:
    [model] = models(gpu_space(batching=(False,), max_batch_size=(4, 8)))
    assert model.artifact.profile == EngineProfile(1, 1)


def test_what_only_engines_have_is_not_searched_elsewhere() -> None:
    searched: dict[str, Any] = {
        "engine_profile": ("shared", "per_batch_size"),
        "cuda_graphs": (False, True),
        "execution_policy": ("device_blocking", "blocking"),
    }
    assert len(gpu_space(**searched)) == 8
    assert len(gpu_space(runtime=("pytorch",), **searched)) == 1


def test_the_execution_policy_is_an_option_of_the_server() -> None:
    space = gpu_space(execution_policy=("device_blocking", "blocking"))
    blocking = ServerOptions((("tensorrt", "execution-policy", "BLOCKING"),))
    found = configs(space)
    assert [config.server for config in found] == [ServerOptions(), blocking]
    for config in found:
        position = space.position_of(config)
        assert position is not None
        assert space.config(position) == config


def test_a_rate_limit_that_cannot_bind_is_none() -> None:
    found = configs(gpu_space(instance_count=(1, 2), rate_limit=("off", 1, 2)))
    limits = {
        (config.models[0].groups[0].count, config.server.executions_per_device) for config in found
    }
    assert limits == {(1, None), (2, None), (2, 1)}
    assert all(c.models[0].rate_limited == bool(c.server.executions_per_device) for c in found)


def test_the_baseline_of_a_gpu_is_what_nobody_has_tuned() -> None:
    space = gpu_space(
        runtime=("tensorrt", "pytorch"),
        precision=("fp16", "fp32"),
        batching=(False, True),
        instance_count=(1, 2),
        cuda_graphs=(False, True),
        rate_limit=("off", 1),
    )
    baseline = space.config(space.baseline)
    assert describe(baseline) == "pytorch fp32, no batching, 1 on GPU 0/1"


def test_memory_leaves_out_what_cannot_fit() -> None:
    space = gpu_space(instance_count=(1, 2, 4), precision=("fp16", "fp32"))
    need = {spec: 3000.0 if spec.precision == "fp32" else 1000.0 for spec in space.artifacts}
    fitting = space.within_memory(6000.0, need)
    left = {(m.artifact.precision, m.groups[0].count) for m in models(fitting)}
    assert left == {("fp16", 1), ("fp16", 2), ("fp16", 4), ("fp32", 1), ("fp32", 2)}


def test_the_machines_memory_holds_the_instances_of_all_gpus() -> None:
    space = gpu_space(instance_count=(1, 2, (1, 2)))
    need = dict.fromkeys(space.artifacts, 4000.0)
    fitting = space.within_memory(14_000.0, need, of_machine=True)
    assert {model.instance_count for model in models(fitting)} == {2, 3}
    on_gpus = space.within_memory(1500.0, dict.fromkeys(space.artifacts, 1000.0))
    both = on_gpus.within_memory(14_000.0, need, of_machine=True)
    assert {model.instance_count for model in models(both)} == {2}
    rule = "the instances fit in 7000 MiB of the machine's memory"
    with pytest.raises(EmptySpaceError, match=rule):
        len(space.within_memory(7000.0, need, of_machine=True))


def test_the_machines_memory_is_shared_by_the_models_on_its_gpus() -> None:
    space = two_models()  # 2 or 4 instances of one model, and 2 or 14 of the other
    need: dict[ArtifactSpec, float] = dict.fromkeys(space.artifacts, 1000.0)
    fitting = space.within_memory(6000.0, need, of_machine=True)
    counts = [tuple(m.instance_count for m in config.models) for config in configs(fitting)]
    assert counts == [(2, 2), (4, 2)]


def test_memory_is_that_of_the_fullest_gpu() -> None:
    space = gpu_space(instance_count=(2, (4, 1)))
    fitting = space.within_memory(3000.0, dict.fromkeys(space.artifacts, 1000.0))
    assert [model.groups for model in models(fitting)] == [(InstanceGroup("KIND_GPU", 2, (0, 1)),)]


def test_nothing_that_fits_is_said_with_the_rule() -> None:
    space = gpu_space().within_memory(500.0, dict.fromkeys(gpu_space().artifacts, 600.0))
    with pytest.raises(EmptySpaceError, match="the instances fit in 500 MiB of memory"):
        len(space)


def test_a_precision_that_a_gpu_lacks_is_named_with_what_it_needs() -> None:
    assert TWO_T4.lacks("bf16") == "bf16 needs compute capability 8.0, Tesla T4 has 7.5"
    assert TWO_T4.lacks("tensorrt", "fp16") is None
    assert TWO_T4.lacks("tensorrt", "bf16") == TWO_T4.lacks("bf16")
    assert Hardware(8, 1000, (A10G,)).lacks("bf16") is None
    assert Hardware(8, 1000).lacks("bf16") is None


@pytest.mark.parametrize(
    ("flags", "offered"),
    [
        ({"avx2", "fma"}, False),
        ({"avx2", "avx_vnni"}, False),
        ({"avx2", "avx_vnni", "avx_ne_convert"}, True),
        ({"avx2", "avx512f"}, True),
        (None, True),
    ],
)
def test_bf16_of_openvino_needs_a_processor_that_computes_it(
    flags: set[str] | None, offered: bool
) -> None:
    reason = processor_lacks("openvino", "bf16", flags)
    assert (reason is None) == offered
    if reason is not None:
        assert "bf16 needs a processor with AVX-512" in reason
        assert reason.endswith("OpenVINO would compute in FP32")
    # PyTorch computes in BF16 everywhere, if slowly.
    assert processor_lacks("pytorch", "bf16", flags) is None
    assert processor_lacks("onnxruntime", "int8_dynamic", flags) is None
    assert processor_lacks("openvino", "fp32", flags) is None


def two_models(
    limits: Limits | None = None, hardware: Hardware = TWO_T4, **ranker: Any
) -> SearchSpace:
    one = parameters_in_order("bert", {**ONE_POINT, "instance_count": (1, 2)})
    other = parameters_in_order("ranker", {**ONE_POINT, "instance_count": (1, 7), **ranker})
    return SearchSpace((*one, *other), hardware, limits or Limits())


def test_several_models_share_the_gpus() -> None:
    found = configs(two_models())
    counts = [tuple(model.groups[0].count for model in config.models) for config in found]
    assert counts == [(1, 1), (1, 7), (2, 1), (2, 7)]
    assert {model.name for config in found for model in config.models} == {"bert", "ranker"}


def test_a_point_of_several_models_is_found_again() -> None:
    space = two_models()
    for config in configs(space):
        position = space.position_of(config)
        assert position is not None
        assert space.config(position) == config
    alone = gpu_space()
    assert space.position_of(alone.config(alone.at(0))) is None


def test_each_model_needs_its_own_artefacts() -> None:
    labels = [spec.label for spec in two_models(precision=("fp16", "fp32")).artifacts]
    assert labels == [
        "bert/tensorrt/fp16/batch 8..8",
        "ranker/tensorrt/fp32/batch 8..8",
        "ranker/tensorrt/fp16/batch 8..8",
    ]


def test_memory_is_shared_by_the_models() -> None:
    space = two_models()
    need: dict[ArtifactSpec, float] = dict.fromkeys(space.artifacts, 1000.0)
    counts = [
        tuple(model.groups[0].count for model in config.models)
        for config in configs(space.within_memory(8000.0, need))
    ]
    assert counts == [(1, 1), (1, 7), (2, 1)]


def test_the_server_has_one_rate_limit_for_all_models() -> None:
    one = parameters_in_order("bert", {**ONE_POINT, "rate_limit": ("off", 1)})
    other = parameters_in_order("ranker", {**ONE_POINT, "rate_limit": ("off", 1)})
    found = configs(SearchSpace((*one, *other), TWO_T4, Limits()))
    assert [config.server.executions_per_device for config in found] == [None, 1]
    assert "1 executing at once" in describe(found[1])


def test_cores_are_shared_by_the_models_on_a_cpu() -> None:
    own: dict[str, Sequence[Value]] = {
        **VALUES, "runtime": ("openvino",), "precision": ("fp32",), "batching": (False,),
        "max_batch_size": (4,), "max_queue_delay_us": (0,), "instance_count": (1,),
    }  # fmt: skip
    parameters = (*parameters_in_order("bert", own), *parameters_in_order("ranker", own))
    found = configs(SearchSpace(parameters, Hardware(3, 24_000), Limits()))
    threads = {tuple(model.groups[0].threads for model in config.models) for config in found}
    assert threads == {(1, 1), (1, 2), (2, 1)}
    with pytest.raises(EmptySpaceError, match="summed over the models"):
        len(SearchSpace(parameters, Hardware(1, 24_000), Limits()))


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512f"}])
def test_openvino_quantises_at_run_time_with_vnni_only(flags: set[str]) -> None:
    """OpenVINO 2026.4, told to use AVX2 only, returned empty outputs."""
    reason = processor_lacks("openvino", "int8_dynamic", flags)
    assert str(reason).startswith("int8_dynamic needs a processor with VNNI")
    assert processor_lacks("openvino", "int8_dynamic", flags | {"avx_vnni"}) is None
