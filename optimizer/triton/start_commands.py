"""The shell commands that start a server over a model repository as this program does."""

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
"""Left out: a server that is started by hand loads all models of its repository."""


def embedded_start_commands(
    runtime: EmbeddedRuntime, root: Path, options: ServerOptions, slot: Slot, endpoint: Endpoint
) -> str:
    """Return the commands that start the embedded server.

    The Python backend needs a folder in which its stub lies beside its library. Triton starts its
    processes by a line of shell without quotes, so the repository is named from within.
    """
    files = shlex.join(map(str, runtime.backend_files))
    environment = " ".join(_assignment(*pair) for pair in runtime.environment)
    pinned = f"taskset --cpu-list {_listed(slot.cores)} " if slot.separated else ""
    server = shlex.join([str(runtime.binary), *_arguments(options, slot, endpoint, ".")])
    return "\n".join(
        [
            "backends=$(mktemp -d) && mkdir $backends/python",
            f"ln -s {files} $backends/python/",
            f"cd {shlex.quote(str(root))}",
            f"{environment} {pinned}{server} --backend-directory=$backends",
        ]
    )


def container_start_command(
    host: ContainerHost, root: Path, options: ServerOptions, slot: Slot, endpoint: Endpoint
) -> str:
    """Return the command that starts a container of the image."""
    gpus = [f'--gpus="device={_listed(slot.gpu_uuids)}"'] if slot.gpu_uuids else []
    command = [
        *("docker", "run", "--rm", "--network=host"),
        *(f"--cpuset-cpus={_listed(slot.cores)}", f"--shm-size={host.shared_memory_bytes}"),
        *(*gpus, "--entrypoint=tritonserver", f"--volume={root}:/models:ro", host.image),
        *_arguments(options, slot, endpoint, "/models"),
    ]
    return shlex.join(command)


def _arguments(
    options: ServerOptions, slot: Slot, endpoint: Endpoint, repository: str
) -> list[str]:
    return [x for x in arguments(options, slot, endpoint, repository) if x != _EXPLICIT]


def _assignment(name: str, value: str) -> str:
    """What a variable is set to, with what it holds already as such."""
    before = os.environ.get(name)
    if not before:
        return f"{name}={shlex.quote(value)}"
    return f'{name}={shlex.quote(value.removesuffix(f":{before}"))}:"${name}"'


def _listed(each: tuple[object, ...]) -> str:
    return ",".join(map(str, each))
