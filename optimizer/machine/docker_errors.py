"""Convert errors of Docker's engine and SDK into this package's, with what to do about them.

The engine reports most refusals as text alone, which is matched here and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from optimizer.errors import ContainerFailure, RequirementError

HOW_TO_HAND_OUT_GPUS = (
    "install nvidia-container-toolkit, then nvidia-ctk runtime configure --runtime=docker, and "
    "restart the engine"
)
_INSTALL = "pip install 'triton-cost-optimizer[docker]'"
_ENGINE = "unix:///var/run/docker.sock"


def not_installed() -> RequirementError:
    """Return the error of a missing SDK."""
    return RequirementError("containers need Docker's Python SDK", _INSTALL)


@contextmanager
def engine_errors(doing: str, image: str = "") -> Iterator[None]:
    """Convert the SDK's errors.

    Args:
        doing: what is attempted; follows "cannot" in messages.
        image: name of the image that is used.

    Raises:
        RequirementError: the image is missing, or the engine cannot provide GPUs.
        ContainerFailure: the engine refuses, or does not answer.
    """
    from docker.errors import APIError, DockerException, ImageNotFound
    from requests.exceptions import RequestException

    try:
        yield
    except ImageNotFound as error:
        raise RequirementError(
            f"the Docker engine has no image {image}", f"docker pull {image}"
        ) from error
    except APIError as error:
        explanation = str(error.explanation or error)
        if "could not select device driver" in explanation:
            raise RequirementError(
                "the Docker engine cannot hand out GPUs", HOW_TO_HAND_OUT_GPUS
            ) from error
        raise ContainerFailure(f"cannot {doing}: {explanation}") from error
    except (DockerException, RequestException) as error:
        raise ContainerFailure(f"cannot {doing}: no answer from the engine: {error}") from error


def refuses_limits(error: Exception) -> bool:
    """Return whether the engine could not set a container's resource limits."""
    return "setting rlimit" in str(error)


def unreachable(error: BaseException) -> RequirementError:
    """Return what to do about an engine that could not be reached, by the cause of the error."""
    where = os.environ.get("DOCKER_HOST", _ENGINE)
    causes = list(_causes(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return RequirementError(
            f"this user may not use the Docker engine at {where}",
            "usermod --append --groups docker USER (as root), then log in anew",
        )
    if any(isinstance(cause, FileNotFoundError | ConnectionRefusedError) for cause in causes):
        return RequirementError(
            f"no Docker engine runs at {where}",
            "install one, or start it (systemctl start docker)",
        )
    return RequirementError(f"the Docker engine at {where} cannot be used: {error}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the errors that it wraps as arguments, and those it was raised from."""
    yield error
    wrapped = [each for each in error.args if isinstance(each, BaseException)]
    for cause in (*wrapped, error.__cause__ or error.__context__):
        if cause is not None:
            yield from _causes(cause)
