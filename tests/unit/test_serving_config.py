from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from pydantic import TypeAdapter

from optimizer.configuration.model_graph import ComposedModel, ModelGraph, Step, in_sequence
from optimizer.configuration.runtimes import PRECISIONS_OF, Runtime
from optimizer.configuration.serving_config import (
    PRECISION_RANK,
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    QueuePolicy,
    ServerOptions,
    ServingConfig,
    describe,
)
from tests.unit.strategies import serving_configs

SPEC = ArtifactSpec(model="bert", runtime="openvino", backend="python", precision="int8")
MODEL = ModelServing(
    name="bert",
    artifact=SPEC,
    max_batch_size=16,
    batching=Batching(preferred_batch_sizes=(8, 16), max_queue_delay_us=100),
    groups=(InstanceGroup(count=2, threads=1),),
    padding=(32, 64),
)
CONFIG = ServingConfig(models=(MODEL,))
BOUNDED = Batching((8, 16), 100, QueuePolicy(max_queue_size=64, timeout_us=50_000))


def test_the_digest_does_not_change_between_releases() -> None:
    """Records and caches on disk are found by it: a new digest loses them."""
    assert CONFIG.digest == "f9fcd513befbbd95"


@given(serving_configs)
def test_the_digest_names_the_content(config: ServingConfig) -> None:
    again = TypeAdapter(ServingConfig).validate_python(
        TypeAdapter(ServingConfig).dump_python(config)
    )
    assert again == config
    assert again.digest == config.digest
    assert len(config.digest) == 16


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, models=(MODEL, replace(MODEL, name="second"))),
        replace(CONFIG, models=(replace(MODEL, name="other"),)),
        replace(CONFIG, models=(replace(MODEL, max_batch_size=8),)),
        replace(CONFIG, models=(replace(MODEL, batching=None),)),
        replace(CONFIG, models=(replace(MODEL, batching=Batching()),)),
        replace(CONFIG, models=(replace(MODEL, batching=BOUNDED),)),
        replace(CONFIG, models=(replace(MODEL, padding=()),)),
        replace(CONFIG, models=(replace(MODEL, artifact=replace(SPEC, precision="fp32")),)),
        replace(CONFIG, models=(replace(MODEL, groups=(InstanceGroup(count=1, threads=2),)),)),
        replace(CONFIG, server=ServerOptions(backend_config=(("python", "shm", "1"),))),
        replace(
            CONFIG,
            graph=ModelGraph((ComposedModel("ensemble", "ensemble", in_sequence(("bert",))),)),
        ),
    ],
)
def test_any_change_has_another_digest(other: ServingConfig) -> None:
    assert other.digest != CONFIG.digest


@given(serving_configs)
def test_json_round_trip(config: ServingConfig) -> None:
    adapter = TypeAdapter(ServingConfig)
    assert adapter.validate_json(adapter.dump_json(config)) == config


def test_instances_are_counted_over_all_groups() -> None:
    groups = (InstanceGroup(count=2), InstanceGroup(count=3))
    assert replace(MODEL, groups=groups).instance_count == 5


def test_every_precision_that_a_runtime_serves_is_ranked() -> None:
    served = {
        precision
        for of in PRECISIONS_OF.values()
        for precisions in of.values()
        for precision in precisions
    }
    assert served == set(PRECISION_RANK)
    assert sorted(PRECISION_RANK, key=lambda p: PRECISION_RANK[p]) == [
        "int8_attention",
        "int8",
        "int8_dynamic",
        "bf16",
        "fp16",
        "fp32",
        "as_deployed",
    ]


def test_every_runtime_serves_the_reference_precision() -> None:
    precisions = PRECISIONS_OF["KIND_CPU"].values()
    assert all({"fp32", "as_deployed"} & set(each) for each in precisions)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            MODEL,
            "openvino int8, max_batch_size 16, preferred 8/16, queue delay 100 us, 2 x 1 thread,"
            " padded to 32/64",
        ),
        (
            ModelServing("bert", SPEC, groups=(InstanceGroup(threads=2),)),
            "openvino int8, no batching, 1 x 2 threads",
        ),
        (
            ModelServing("bert", SPEC, max_batch_size=4, batching=Batching()),
            "openvino int8, max_batch_size 4, queue delay 0 us, 1 x 1 thread",
        ),
    ],
)
def test_describe(model: ModelServing, line: str) -> None:
    assert describe(ServingConfig((model,))) == line


@pytest.mark.parametrize(
    ("runtime", "described"),
    [("tokenizers", "top: BLS model, no batching, 1 instance"), ("repository", "top: as deployed")],
)
def test_a_bls_model_that_was_made_here_is_not_deployed(runtime: Runtime, described: str) -> None:
    step = ModelServing("step", ArtifactSpec("step", runtime, "python", "as_deployed"))
    top = ModelServing("top", ArtifactSpec("top", "repository", "python", "as_deployed"))
    graph = ModelGraph((ComposedModel("top", "bls", (Step("step"),)),))
    assert f"; {described}" in describe(ServingConfig((step, top), graph))


def test_a_label_is_short() -> None:
    assert SPEC.label == "bert/openvino/int8"


def test_a_queue_policy_is_described_by_what_it_bounds() -> None:
    assert "queue" not in describe(CONFIG).replace("queue delay 100 us", "")
    bounded = describe(ServingConfig((replace(MODEL, batching=BOUNDED),)))
    assert "queue delay 100 us, max_queue_size 64, queue timeout 50000 us (reject)" in bounded
