"""NVIDIA's container releases, their versions, and which server can load an engine. Pure.

The versions of Triton and TensorRT are those of the releases (GitHub releases of
triton-inference-server/server; the banner of trtexec in each image). The least compute capability
is that of Triton's release notes ("GPU Requirements", 25.08 and later). The least driver is that of
CUDA 13. Data-centre GPUs may use an older driver branch with the image's compatibility libraries,
so an older driver is reported and never refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optimizer.configuration.hardware import Gpu
from optimizer.errors import EngineMismatch, RequirementError

DEFAULT_TAG = "26.05"
"""The last release with TensorRT 10; TensorRT 11.1 computes FP32 wrongly (TensorRT issue 4813)."""

LEAST_DRIVER = 580
"""Branch of NVIDIA's driver that every tag below needs."""

LEAST_COMPUTE_CAPABILITY = (7, 5)
"""That of Turing GPUs, such as the T4."""


@dataclass(frozen=True)
class Release:
    """One tag of NVIDIA's images.

    Attributes:
        triton: version that the server reports.
        tensorrt: version in the image, maybe without its last parts; None if unknown.
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


FIELDS_SINCE: Mapping[str, tuple[int, int]] = {
    # Earlier servers lack the field, or limit the responses of decoupled models by it alone.
    "ensemble_scheduling.max_inflight_requests": (2, 68),
}
"""Fields of config.pbtxt that older servers do not have, and the first version with each."""


def refuse_newer_fields(paths: Iterable[str], triton_version: str | None) -> None:
    """Check that a server has fields of config.pbtxt.

    Args:
        triton_version: such as "2.69.0"; None where it is unknown, so that nothing is refused.

    Raises:
        RequirementError: naming the field, and the version that it needs.
    """
    parts = (triton_version or "").split(".")[:2]
    if not all(map(str.isdecimal, parts)):
        return
    for path in paths:
        least = FIELDS_SINCE.get(path, (0, 0))
        if tuple(map(int, parts)) < least:
            needed = ".".join(map(str, least))
            raise RequirementError(
                f"config.{path} needs Triton {needed} or later, and the server is "
                f"{triton_version}: leave it out, or use a newer server by server.launcher docker "
                "or remote"
            )


def triton_image(tag: str = DEFAULT_TAG) -> str:
    """Return the name of the image that holds the server and trtexec."""
    return f"nvcr.io/nvidia/tritonserver:{tag}-py3"


def tensorrt_image(tag: str = DEFAULT_TAG) -> str:
    """Return the name of the image that holds TensorRT's Python package."""
    return f"nvcr.io/nvidia/tensorrt:{tag}-py3"


def tag_of(server_image: str) -> str:
    """Return the release in the name of a server's image, the default release without one."""
    return _release_in(server_image) or DEFAULT_TAG


def _release_in(image: str) -> str | None:
    match = re.search(r":(\d\d\.\d\d)\b", image)
    return match[1] if match is not None else None


@dataclass(frozen=True)
class ImageContent:
    """Versions in one of NVIDIA's images, or in one that was built from it; None if unknown."""

    triton: str | None
    tensorrt: str | None


def content_of(image: str, environment: Mapping[str, str]) -> ImageContent:
    """Return the versions in an image by the variables that it sets, else by its release.

    TRITON_SERVER_VERSION and TRT_VERSION hold versions. NVIDIA_TRITON_SERVER_VERSION and
    NVIDIA_TENSORRT_VERSION hold the release.

    Args:
        image: name of the image, with its tag.
    """
    tags = [
        environment.get("NVIDIA_TRITON_SERVER_VERSION"),
        environment.get("NVIDIA_TENSORRT_VERSION"),
        _release_in(image),
    ]
    by_tag = {release.tag: release for release in RELEASES}
    release = next((by_tag[tag] for tag in tags if tag in by_tag), Release("", "", None))
    # In "10.14.1.48+cuda13.0" the version of CUDA is no part of TensorRT's version.
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
    """

    tensorrt: str
    gpu_name: str
    compute_capability: tuple[int, int]


def refuse_mismatch(
    plan: EngineFacts, triton_version: str, gpus: Sequence[Gpu] = (), tensorrt: str | None = None
) -> None:
    """Refuse an engine that does not fit the server that is to load it.

    TensorRT loads only plans of its own version and GPU architecture. On another GPU of the same
    architecture a plan runs with kernels that TensorRT would not have chosen there. A server of
    unknown version refuses the engine itself.

    Args:
        triton_version: version that the server reports.
        gpus: GPUs that the server may use.
        tensorrt: version in the server's image; None where that does not tell, so that it follows
            from the version of Triton.

    Raises:
        EngineMismatch: names the versions and GPUs of the engine and of the server.
    """
    release = {release.triton: release for release in RELEASES}.get(triton_version)
    expected = tensorrt or (release.tensorrt if release is not None else None)
    if expected and not same_version(plan.tensorrt, expected):
        of_release = release is not None and release.tensorrt == expected
        there = tensorrt_image(release.tag) if of_release and release else "the server's own image"
        raise EngineMismatch(
            f"the engine was built with TensorRT {plan.tensorrt}, but Triton {triton_version} has"
            f" TensorRT {expected}: build in {there}"
        )
    own = plan.gpu_name, plan.compute_capability
    for gpu in gpus:
        if (gpu.name, gpu.compute_capability) != own:
            raise EngineMismatch(
                f"the engine was built for {_gpu(*own)}, but the server has"
                f" {_gpu(gpu.name, gpu.compute_capability)}: build it there"
            )


def same_version(one: str, other: str) -> bool:
    """Return whether two versions are equal in the parts that both have."""
    return all(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


def _gpu(name: str, capability: tuple[int, int]) -> str:
    return f"{name} (compute capability {capability[0]}.{capability[1]})"
