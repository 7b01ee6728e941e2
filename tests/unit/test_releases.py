"""NVIDIA's releases, and which engine which server can load."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from optimizer.configuration.releases import (
    DEFAULT_TAG,
    LEAST_COMPUTE_CAPABILITY,
    LEAST_DRIVER,
    RELEASES,
    EngineFacts,
    ImageContent,
    content_of,
    refuse_mismatch,
    tensorrt_image,
    triton_image,
)
from optimizer.errors import ModelLoadFailure
from tests.unit.engines import A10G

PLAN = EngineFacts("10.16.1.11", A10G.name, A10G.compute_capability)


def test_the_default_tag_is_a_release_whose_tensorrt_is_known() -> None:
    [release] = [release for release in RELEASES if release.tag == DEFAULT_TAG]
    assert release.tensorrt == "10.16.1.11"
    assert triton_image() == f"nvcr.io/nvidia/tritonserver:{DEFAULT_TAG}-py3"
    assert tensorrt_image("26.07") == "nvcr.io/nvidia/tensorrt:26.07-py3"
    assert (LEAST_DRIVER, LEAST_COMPUTE_CAPABILITY) == (580, (7, 5))


@pytest.mark.parametrize("version", ["2.69.0", "2.51.0", "2.73.0"])
def test_its_own_server_and_those_that_are_not_known_are_not_refused(version: str) -> None:
    refuse_mismatch(PLAN, version, [A10G])


def test_versions_are_compared_as_far_as_they_are_known() -> None:
    refuse_mismatch(EngineFacts("11.2.1.9", "any", (8, 6)), "2.72.0")
    with pytest.raises(ModelLoadFailure, match=re.escape("TensorRT 11.2.2.9, but Triton 2.72.0")):
        refuse_mismatch(EngineFacts("11.2.2.9", "any", (8, 6)), "2.72.0")


def test_what_the_servers_image_has_goes_before_what_a_release_had() -> None:
    refuse_mismatch(PLAN, "2.71.0", [A10G], tensorrt="10.16.1.11")
    for version in ("2.69.0", "2.51.0"):  # of a release, and of none
        with pytest.raises(
            ModelLoadFailure, match=r"has TensorRT 11\.2\.1: build in the server's own image$"
        ):
            refuse_mismatch(PLAN, version, [A10G], tensorrt="11.2.1")


def test_another_tensorrt_is_refused_with_both_names() -> None:
    message = (
        "the engine was built with TensorRT 10.16.1.11, but Triton 2.71.0 has TensorRT "
        "11.1.0.106: build in nvcr.io/nvidia/tensorrt:26.07-py3"
    )
    with pytest.raises(ModelLoadFailure, match=re.escape(message)):
        refuse_mismatch(PLAN, "2.71.0", [A10G])


@pytest.mark.parametrize(
    ("name", "capability", "told"),
    [
        ("NVIDIA L4", (8, 9), "NVIDIA L4 (compute capability 8.9)"),
        ("NVIDIA A10", (8, 6), "NVIDIA A10 (compute capability 8.6)"),
    ],
)
def test_another_gpu_is_refused_with_both_names(
    name: str, capability: tuple[int, int], told: str
) -> None:
    other = replace(A10G, name=name, compute_capability=capability)
    message = f"built for NVIDIA A10G (compute capability 8.6), but the server has {told}"
    with pytest.raises(ModelLoadFailure, match=re.escape(message)):
        refuse_mismatch(PLAN, "2.69.0", [A10G, other])


@pytest.mark.parametrize(
    ("image", "sets", "content"),
    [
        # What Triton's image of release 24.09 sets.
        (
            "own:1",
            {
                "TRT_VERSION": "10.4.0.26",
                "TRITON_SERVER_VERSION": "2.50.0",
                "NVIDIA_TRITON_SERVER_VERSION": "24.09",
            },
            ImageContent("2.50.0", "10.4.0.26"),
        ),
        ("own:1", {"TRT_VERSION": "10.14.1.48+cuda13.0"}, ImageContent(None, "10.14.1.48")),
        # A variable that holds a release is none that holds a version.
        ("own:1", {"NVIDIA_TENSORRT_VERSION": "26.05"}, ImageContent("2.69.0", "10.16.1.11")),
        ("own:1", {"NVIDIA_TENSORRT_VERSION": "25.02"}, ImageContent(None, None)),
        (triton_image("26.07"), {}, ImageContent("2.71.0", "11.1.0.106")),
        (triton_image("26.06"), {}, ImageContent("2.70.0", None)),
        (
            triton_image("26.07"),
            {"NVIDIA_TRITON_SERVER_VERSION": "26.05"},
            ImageContent("2.69.0", "10.16.1.11"),
        ),
        ("own:1", {}, ImageContent(None, None)),
    ],
)
def test_an_image_holds_what_it_sets_or_what_its_release_has(
    image: str, sets: dict[str, str], content: ImageContent
) -> None:
    assert content_of(image, sets) == content
