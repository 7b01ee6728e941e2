"""NVIDIA's container releases, what each holds, and which engine which server can load. Pure.

Triton's and TensorRT's versions by tag are those of the releases themselves (GitHub releases of
triton-inference-server/server; trtexec's banner in each image). The least compute capability is
that of Triton's own release notes ("GPU Requirements", 25.08 and later). The least driver is CUDA
13's, on which these tags are taken to be built: a data-centre GPU may do with an older branch and
the image's compatibility libraries, so it is advice here and never refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.configuration.hardware import Gpu
from optimizer.errors import EngineMismatch

DEFAULT_TAG = "26.05"
"""The last release with TensorRT 10: 11.1 is reported to compute FP32 wrongly (TensorRT issue
4813)."""

LEAST_DRIVER = 580
"""NVIDIA's driver branch that every tag below needs."""

LEAST_COMPUTE_CAPABILITY = (7, 5)
"""Turing, such as the T4."""


@dataclass(frozen=True)
class Release:
    """One tag of NVIDIA's images.

    Attributes:
        triton: version that the server gives as its own.
        tensorrt: version in the image, as far as it is known; None where it is not.
    """

    tag: str
    triton: str
    tensorrt: str | None


RELEASES = (
    Release("26.05", "2.69.0", "10.16.1.11"),
    Release("26.06", "2.70.0", None),
    Release("26.07", "2.71.0", "11.1.0.106"),
    Release("26.08", "2.72.0", "11.2.1"),
    Release("26.09", "2.73.0", None),
)


def triton_image(tag: str = DEFAULT_TAG) -> str:
    """The image that holds the server, and trtexec."""
    return f"nvcr.io/nvidia/tritonserver:{tag}-py3"


def tensorrt_image(tag: str = DEFAULT_TAG) -> str:
    """The image that holds TensorRT's Python package, in the server's own version."""
    return f"nvcr.io/nvidia/tensorrt:{tag}-py3"


def tag_of(server_image: str) -> str:
    """The release that a server's image is, or is named after; the default where none is named."""
    found = re.search(r":(\d\d\.\d\d)\b", server_image)
    return found[1] if found is not None else DEFAULT_TAG


@dataclass(frozen=True)
class ImageContent:
    """What one of NVIDIA's images, or one that was built from it, holds; None is not known.

    Attributes:
        triton: version of the server, where the image has one.
        tensorrt: version of TensorRT.
    """

    triton: str | None
    tensorrt: str | None


def content_of(image: str, environment: Mapping[str, str]) -> ImageContent:
    """The versions in an image by the variables that it sets, else by its release.

    TRITON_SERVER_VERSION and TRT_VERSION hold versions; the variables of the same names that begin
    with NVIDIA hold the release.

    Args:
        image: its name, with the tag.
    """
    named = re.search(r":(\d\d\.\d\d)\b", image)
    tags = [
        environment.get("NVIDIA_TRITON_SERVER_VERSION"),
        environment.get("NVIDIA_TENSORRT_VERSION"),
        named[1] if named is not None else None,
    ]
    known = {release.tag: release for release in RELEASES}
    release = next((known[tag] for tag in tags if tag in known), Release("", "", None))
    # "10.14.1.48+cuda13.0": the CUDA that it was built with is no part of the version.
    tensorrt = environment.get("TRT_VERSION", "").partition("+")[0]
    return ImageContent(
        triton=environment.get("TRITON_SERVER_VERSION") or release.triton or None,
        tensorrt=tensorrt or release.tensorrt,
    )


@dataclass(frozen=True)
class EngineFacts:
    """What an engine was built with and for, stored beside its plan.

    Attributes:
        tensorrt: version, such as "10.16.1.11".
        gpu_name: exact model.
        compute_capability: (major, minor).
    """

    tensorrt: str
    gpu_name: str
    compute_capability: tuple[int, int]


def refuse_mismatch(plan: EngineFacts, triton_version: str, gpus: Sequence[Gpu] = ()) -> None:
    """Hold an engine against the server that is to load it.

    TensorRT loads a plan of its own version and GPU architecture alone; and on another model of the
    same architecture its kernels are not those that would have been chosen. What is not known of a
    server refuses nothing: that is left to the server.

    Args:
        triton_version: that the server gives as its own.
        gpus: those that the server may use.

    Raises:
        EngineMismatch: it does not fit; the message names what it was built with and what is
            there.
    """
    known = {release.triton: release for release in RELEASES}.get(triton_version)
    if known is not None and known.tensorrt and not same_version(plan.tensorrt, known.tensorrt):
        raise EngineMismatch(
            f"the engine was built with TensorRT {plan.tensorrt}, but Triton {triton_version} has"
            f" TensorRT {known.tensorrt}: build in {tensorrt_image(known.tag)}"
        )
    own = plan.gpu_name, plan.compute_capability
    for gpu in gpus:
        if (gpu.name, gpu.compute_capability) != own:
            raise EngineMismatch(
                f"the engine was built for {_gpu(*own)}, but the server has"
                f" {_gpu(gpu.name, gpu.compute_capability)}: build it there"
            )


def same_version(one: str, other: str) -> bool:
    """Whether two versions are equal as far as both are known."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


def _gpu(name: str, capability: tuple[int, int]) -> str:
    return f"{name} (compute capability {capability[0]}.{capability[1]})"
