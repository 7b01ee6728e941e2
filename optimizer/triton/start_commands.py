"""Shell commands that start the same server over a model repository as this program does."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.machine.slots import Slot
from optimizer.triton.control import Endpoint
from optimizer.triton.embedded import EmbeddedRuntime
from optimizer.triton.launcher import arguments

_EXPLICIT = "--model-control-mode=explicit"
"""Omitted from the commands, so that the server loads all models of its repository."""


def embedded_start_commands(
    runtime: EmbeddedRuntime, root: Path, options: ServerOptions, slot: Slot, endpoint: Endpoint
) -> str:
    """Return the commands that start the embedded server.

    The Python backend needs a folder that holds its stub beside its library. The repository is
    given as a relative path, because Triton starts model processes by an unquoted shell command.
    """
    files = shlex.join(map(str, runtime.backend_files))
    environment = " ".join(_assignment(*pair) for pair in runtime.environment)
    visible = f"CUDA_VISIBLE_DEVICES={_joined(slot.gpu_uuids)}"
    pinned = f"taskset --cpu-list {_joined(slot.cores)} " if slot.separated else ""
    own = [*_arguments(options, slot, endpoint, "."), runtime.cache_flag]
    server = shlex.join([str(runtime.binary), *own])
    return "\n".join(
        [
            "backends=$(mktemp -d) && mkdir $backends/python",
            f"ln -s {files} $backends/python/",
            f"cd {shlex.quote(str(root))}",
            f"{environment} {visible} {pinned}{server} --backend-directory=$backends",
        ]
    )


def container_start_command(
    host: ContainerHost, root: Path, options: ServerOptions, slot: Slot, endpoint: Endpoint
) -> str:
    """Return the command that starts a container of the image."""
    gpus = [f'--gpus="device={_joined(slot.gpu_uuids)}"'] if slot.gpu_uuids else []
    command = [
        *("docker", "run", "--rm", "--network=host"),
        *(f"--cpuset-cpus={_joined(slot.cores)}", f"--shm-size={host.shared_memory_bytes}"),
        *(*gpus, "--entrypoint=tritonserver", f"--volume={root}:/models:ro", host.image),
        *_arguments(options, slot, endpoint, "/models"),
    ]
    return shlex.join(command)


def _arguments(
    options: ServerOptions, slot: Slot, endpoint: Endpoint, repository: str
) -> list[str]:
    flags = arguments(options, slot, endpoint, repository)
    return [flag for flag in flags if flag != _EXPLICIT]


def _assignment(name: str, value: str) -> str:
    """Return a shell assignment in which the variable's present value stays a reference."""
    present = os.environ.get(name)
    if not present:
        return f"{name}={shlex.quote(value)}"
    return f'{name}={shlex.quote(value.removesuffix(f":{present}"))}:"${name}"'


def _joined(items: tuple[object, ...]) -> str:
    return ",".join(map(str, items))
