"""One artefact cache for the whole suite, and the optimizer as a process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.run_context import open_space
from optimizer.configuration.runtimes import Runtime
from optimizer.configuration.runtimes.spec import Precision
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.triton.session import ModelFiles
from optimizer.workload.streams import Tensors
from tests.e2e import tiny
from tests.e2e.running import ROOT, Optimizer

_RUN_SECONDS = 3600.0
"""Longer than any run of pytest."""


@pytest.fixture(scope="session")
def artifacts(request: pytest.FixtureRequest) -> Path:
    """A folder of artefact caches that runs of pytest share, as long as the program is the same."""
    program = hashlib.sha256()
    for path in sorted((ROOT / "optimizer").rglob("*.py")):
        program.update(path.read_bytes())
    assert request.config.cache is not None
    folder = request.config.cache.mkdir(f"artifacts-{program.hexdigest()[:12]}")
    folder.touch()
    for other in folder.parent.glob("artifacts-*"):
        if time.time() - other.stat().st_mtime > _RUN_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Built:
    """Every artefact of the tiny model, and its FP32 reference."""

    cache: Path
    files: dict[ArtifactSpec, ModelFiles]
    evaluation: list[Tensors]
    reference: NDArray[np.generic]

    def spec(self, runtime: Runtime, precision: Precision) -> ArtifactSpec:
        return next(s for s in self.files if (s.runtime, s.precision) == (runtime, precision))


@pytest.fixture(scope="session")
def built(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built once, by the first that needs it: the slowest thing that these tests need."""
    folder, cache = tmp_path_factory.mktemp("built"), artifacts / "tiny"
    space = open_space(tiny.write_space(folder, tiny.space(parameters=tiny.ALL_ARTIFACTS)))
    with (
        (artifacts / "lock").open("w") as lock,
        BuildProcess(ArtifactCache(cache), folder / "build.log", threads=2) as builds,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepared = builds.prepare_model(space.models[0])
        outputs = prepared.outputs
        files = {
            spec: ModelFiles(
                builds.build(spec, space.models[0]).path, space.models[0].payloads, outputs
            )
            for spec in space.search_space.artifacts
        }
    reference = prepared.references[0].outputs["logits"]
    return Built(cache, files, prepared.evaluation, reference)


def completed(folder: Path, *arguments: object) -> Optimizer:
    """Run a command in `folder` to its end, which must be a good one."""
    optimizer = Optimizer(arguments, folder)
    try:
        assert optimizer.wait() == 0, optimizer.output + optimizer.errors
    finally:
        optimizer.end()
    return optimizer


@dataclass(frozen=True)
class Searched:
    """A finished study `tiny` of one trial, on an instance type of SageMaker.

    Attributes:
        folder: where it was searched, which no test changes.
    """

    folder: Path
    cache: Path

    def copy_to(self, folder: Path) -> None:
        """Copy the results to a folder whose command `run` may go on with them."""
        shutil.copytree(self.folder / "results", folder / "results", symlinks=True)

    @property
    def search(self) -> tuple[object, ...]:
        """The command that has searched it."""
        space = self.folder / "space.yaml"
        return ("run", space, "--cache", self.cache, "--sampler", "random")


@pytest.fixture(scope="session")
def searched(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """One search for all files that need a study and not how it came to be."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers have in common
    searched = Searched(folder / "a search", built.cache)
    searched.folder.mkdir(exist_ok=True)
    with (searched.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # To run it once more would give it a lease, which another worker might copy.
        if not (searched.folder / "results" / "tiny" / "summary.json").exists():
            tiny.write_space(searched.folder, tiny.LABELLED)
            completed(searched.folder, *searched.search)
    return searched


StartOptimizer = Callable[..., Optimizer]

_BUILD = ("baseline", "export", "measure", "recommend", "record", "run")
"""Commands that take the folder of the artefact cache."""


@pytest.fixture
def start(built: Built, tmp_path: Path) -> Iterator[StartOptimizer]:
    """Start `optimizer run SPACE ...` in tmp_path; killed at the end where it still runs.

    At random, where no sampler is asked for: that ends with its budget, and calibrates nothing.
    """
    with ExitStack() as stack:

        def run(
            subject: object, *options: object, command: str = "run", **settings: object
        ) -> Optimizer:
            if command == "run" and "--sampler" not in options:
                options = ("--sampler", "random", *options)
            if command in _BUILD:
                options = ("--cache", built.cache, *options)
            optimizer = Optimizer(
                [command, subject, *options],
                tmp_path,
                **settings,  # type: ignore[arg-type]
            )
            stack.callback(optimizer.end)
            return optimizer

        yield run


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A small file system of its own, where this process may mount one."""
    with ExitStack() as stack:

        def tmpfs(name: str, *options: str) -> Path:
            folder = tmp_path / name
            folder.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
            stack.callback(subprocess.check_call, ["umount", "--lazy", str(folder)])
            return folder

        yield tmpfs


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast
