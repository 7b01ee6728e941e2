"""Servers for production, made up: on processors, on GPUs, and with several models."""

from __future__ import annotations

from dataclasses import replace

from optimizer.export.deployment import (
    Deployment,
    Input,
    MeasuredModel,
    Resources,
    container_image,
    embedded_image,
)
from optimizer.export.platforms.formats import PLATFORMS
from optimizer.measurement.cost import Demand, Price
from optimizer.triton.embedded import SERVER_PACKAGE
from optimizer.workload.streams import LatencyLimit

BERT = MeasuredModel(
    name="bert",
    requests_per_second=850.0,
    limit=LatencyLimit(95, 200),
    latency_ms=61.5,
    queue_ms=7.25,
    batch_size=9.5,
    largest_batch=16,
    queue_delay_ms=0.0,
    inputs=(Input("input_ids", "INT64", (1, 16), 7), Input("attention_mask", "INT64", (1, 16), 1)),
)
RANKER = MeasuredModel(
    name="ranker.v2",
    requests_per_second=1.5,
    limit=LatencyLimit(99.9, 35.5),
    latency_ms=34.0,
    queue_ms=0.0,
    batch_size=1.0,
    largest_batch=1,
    queue_delay_ms=0.0,
    inputs=(Input("features", "FP32", (1, 4), -0.5),),
)
UNSEEN = replace(RANKER, name="on", queue_ms=None, batch_size=None)

ON_CPU = Deployment(
    name="quickstart",
    description="openvino int8, max_batch_size 16, queue delay 0 us, 2 x 1 thread",
    image=embedded_image(["numpy==1.26.4", "openvino==2026.4.1"], SERVER_PACKAGE, "3.11"),
    flags=("--disable-auto-complete-config",),
    models=(BERT,),
    resources=Resources(cores=1.52, memory_mib=411.0, gpus=0),
    price=Price("ml.c5.xlarge", 0.204, "price list, us-west-2", "2026-09-01", "us-west-2"),
    demand=Demand(5000, headroom=0.2),
    capacity_per_second=850.0,
    load_seconds=1.3,
    measured_on="Some CPU, 4 cores",
)
ON_GPU = replace(
    ON_CPU,
    name="bert-large",
    description="tensorrt fp16, max_batch_size 64, queue delay 500 us, 2 on GPU 0",
    image=container_image("nvcr.io/nvidia/tritonserver:26.05-py3", [], 2**28),
    flags=(
        "--disable-auto-complete-config",
        "--backend-config=tensorrt,execution-policy=BLOCKING",
    ),
    resources=Resources(cores=2.0, memory_mib=3000.0, gpus=1),
    price=Price("ml.g5.xlarge", 1.41, "price list, us-west-2", "2026-09-01", "us-west-2"),
    protocol="http",
    measured_on="Some CPU, 4 cores, 1 x NVIDIA A10G",
)
SEVERAL = replace(
    ON_CPU,
    name="several",
    models=(BERT, RANKER, UNSEEN),
    resources=Resources(cores=None, memory_mib=None, gpus=0),
    load_seconds=None,
    measured_on=None,
)
PIPELINE = replace(
    ON_CPU,
    name="pipeline",
    models=(replace(BERT, queue_ms=None, batch_size=None),),
    steps=(
        replace(BERT, name="tokenizer", queue_ms=0.5, batch_size=1.0, largest_batch=1, step=True),
        replace(BERT, name="encoder", requests_per_second=1700.0, step=True),
    ),
)
ALL = (ON_CPU, ON_GPU, SEVERAL)


def platform_files(platform: str, deployment: Deployment) -> dict[str, str]:
    """All texts of a format, by path."""
    return PLATFORMS[platform].files(deployment)
