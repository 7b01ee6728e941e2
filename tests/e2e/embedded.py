"""A serving session on the embedded server."""

from __future__ import annotations

from pathlib import Path

from optimizer.configuration.hardware import Gpu
from optimizer.files.shipped import shipped
from optimizer.machine.slots import local_slot
from optimizer.triton.embedded import find_embedded_runtime
from optimizer.triton.embedded_launcher import EmbeddedLauncher
from optimizer.triton.repository import ModelRepository
from optimizer.triton.session import ServingSession


def embedded_session(
    folder: Path, templates: Path | None = None, gpus: tuple[Gpu, ...] = ()
) -> ServingSession:
    """Return a session, a context manager that keeps the server's files in `folder`.

    Args:
        templates: of the model repository; None for those of the program.
        gpus: that the server sees.
    """
    runtime, root = find_embedded_runtime(), folder / "repository"
    backends = runtime.lay_out(folder / "backends")
    launcher = EmbeddedLauncher(runtime, backends, root, folder / "server.log")
    models = ModelRepository(root, templates or shipped("model_repository_templates"))
    return ServingSession(launcher, models, local_slot(tuple(gpu.uuid for gpu in gpus)), gpus)
