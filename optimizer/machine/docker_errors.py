"""What Docker's engine and SDK refuse, in our errors, with what to do about it."""

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
    """Without the SDK there are no containers."""
    return RequirementError("containers need Docker's Python SDK", _INSTALL)


@contextmanager
def engine_errors(doing: str, image: str = "") -> Iterator[None]:
    """Turn the SDK's errors into ours.

    Args:
        doing: what is tried, as "cannot ..." goes on.
        image: that is asked for.

    Raises:
        RequirementError: the image is not there, or the engine cannot hand out GPUs.
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
        said = str(error.explanation or error)
        if "could not select device driver" in said:
            raise RequirementError(
                "the Docker engine cannot hand out GPUs", HOW_TO_HAND_OUT_GPUS
            ) from error
        raise ContainerFailure(f"cannot {doing}: {said}") from error
    except (DockerException, RequestException) as error:
        raise ContainerFailure(f"cannot {doing}: no answer from the engine: {error}") from error


def unreachable(said: str) -> RequirementError:
    """What to do about an engine that could not be reached, by what the SDK says of it."""
    where = os.environ.get("DOCKER_HOST", _ENGINE)
    if "PermissionError" in said:
        return RequirementError(
            f"this user may not use the Docker engine at {where}",
            "usermod --append --groups docker USER (as root), then log in anew",
        )
    if any(sign in said for sign in ("FileNotFoundError", "Connection refused")):
        return RequirementError(
            f"no Docker engine runs at {where}",
            "install one, or start it (systemctl start docker)",
        )
    return RequirementError(f"the Docker engine at {where} cannot be used: {said}")
