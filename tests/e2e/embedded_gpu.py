"""`make test-gpu-embedded`: all that the embedded server does on a GPU, in one run and one report.

    python -m tests.e2e.embedded_gpu [--rehearse] [--results results/gpu_embedded]

It needs an NVIDIA GPU with its driver, and neither Docker nor root. With `--rehearse` a fake NVML
and the CPU stand in for the GPU, so that the script itself is known to run: what it measures then
says nothing about GPUs. The exit code is 0 where all checks passed, 1 where one failed, and 3 where
one could not run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from optimizer.artifacts.build_process import BuildProcess
from optimizer.artifacts.cache import ArtifactCache
from optimizer.commands.hosts import Needs, require_server
from optimizer.commands.run_context import open_space
from optimizer.configuration.hardware import Gpu
from optimizer.configuration.hosting import EmbeddedHost, EngineSettings
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    EngineProfile,
    ServingConfig,
)
from optimizer.errors import RequirementError, TrialFailure
from optimizer.machine import gpus as nvml
from optimizer.machine.slots import local_slot
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.triton.session import ModelFiles, ServingSession
from tests.e2e import engine_on_gpu, tiny
from tests.e2e.check_report import CannotRunError, Check, Figures, run_checks
from tests.e2e.embedded import embedded_session
from tests.e2e.gpu_search import SearchOnGpu, fused_attentions
from tests.e2e.running import ROOT, Optimizer
from tests.unit import fake_nvml

TRIALS = 6
PROCESSES = 3
REHEARSAL = "rehearsal on a CPU with a fake NVML"
_LOAD_MIB = 1024
_CONTEXT_BYTES = 500 * 2**20
"""About what a process takes of a GPU before its model."""

_KEPT_MIB = 256
_RELEASE_SECONDS = 5.0
_SEARCH_SECONDS = 420.0
_ENGINE = ArtifactSpec("bert", "tensorrt", "tensorrt", "fp16", EngineProfile(16, 16))
_LAYERS = 6
"""Of the model; each has one attention."""

_LOAD = """
import sys, time, torch
device, held_mib, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = torch.ones(held_mib * 2**20, dtype=torch.uint8, device=device)
factor = torch.rand(size, size, device=device)
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    float((factor @ factor).sum())
"""


_BALLAST = """
import time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - 200 * 2**20, dtype=torch.uint8, device="cuda")
print("ready", flush=True)
time.sleep(120)
"""
"""Leaves less of the GPU than the CUDA context of a process takes."""


@contextlib.contextmanager
def rehearsal() -> Iterator[None]:
    """Have a fake NVML tell of this process's children what a GPU tells of what runs on it."""

    def memory_of(child: psutil.Process) -> int:
        try:
            return _CONTEXT_BYTES + int(child.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    class StandIn(fake_nvml.Card):
        """A card whose memory, load and processes are those of the children on the CPU."""

        def __getattribute__(self, name: str) -> Any:
            children = psutil.Process().children(recursive=True)
            told = {
                "memory": sum(map(memory_of, children)),
                "utilization": 100 if children else 0,
                "pids": tuple(child.pid for child in children),
            }
            return told[name] if name in told else super().__getattribute__(name)

    with pytest.MonkeyPatch.context() as patched:
        fake_nvml.install(patched, {"GPU-FAKE": StandIn(name="fake NVML on a CPU")})
        yield


def model_space(gpu: Gpu | None, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """A space of a BERT with random weights: of MiniLM's shape on a GPU.

    In the rehearsal the BERT is tiny, with fewer artefacts and trials: it shows no more with them.
    """
    content = tiny.space()
    content["budget"] = {"trials": 1 if gpu is None else TRIALS, "wall_clock": "8m"}
    content["parameters"] = {
        "runtime": list(runtimes),
        "precision": ["fp32", "fp16", "bf16"],
        "instance_count": [1, 2],
    }
    if gpu is None:
        content["parameters"]["runtime"] = list(runtimes[:1])
    else:
        content["parameters"] |= {"batching": [False, True], "max_batch_size": [4, 16]}
        content["server"] = {"gpus": [gpu.uuid]}
        content["models"]["bert"]["lengths"] = {"fixed": 128}
        content["models"]["bert"]["source"]["config"] |= {
            "hidden_size": 384,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
            "initializer_range": 0.02,
        }
        content["measurement"] |= {"saturation_seconds": 1, "check_seconds": 1}
    return content


@dataclass(frozen=True)
class Checks:
    """The checks on one GPU.

    Attributes:
        gpu: None in the rehearsal, where everything runs on the CPU.
        card: UUID that NVML is asked about.
        folder: for temporary files.
        cache: of artefacts.
    """

    gpu: Gpu | None
    card: str
    folder: Path
    cache: Path

    def all(self) -> Mapping[str, Check]:
        """Every check by name, in the order in which they run."""
        return {
            "the runtimes see the GPU": self.runtimes_see_the_gpu,
            "NVML shows a known load": self.nvml_shows_a_known_load,
            "a foreign process is seen": self.a_foreign_process_is_seen,
            "a search": self.a_search,
            "parity of fp32, fp16 and bf16": self.parity,
            "memory of one and three processes": self.memory_of_processes,
            "memory is returned after unload": self.memory_is_returned,
            "a load that is out of memory": self.out_of_memory,
            "CUDA graphs": self.cuda_graphs,
        }

    # The machine

    @cached_property
    def _refusals(self) -> Mapping[str, str]:
        """Why runtimes cannot run, by runtime; empty texts for those that can."""
        slot = local_slot((self.gpu.uuid,) if self.gpu is not None else ())
        refusals = {}
        for runtime in ("onnxruntime", "pytorch"):
            try:
                require_server(EmbeddedHost(), Needs(("bert",), (runtime,)), slot)
                refusals[runtime] = ""
            except RequirementError as error:
                refusals[runtime] = str(error)
        return refusals

    @property
    def _usable(self) -> tuple[str, ...]:
        usable = tuple(runtime for runtime, why in self._refusals.items() if not why)
        if not usable:
            raise CannotRunError("no runtime sees the GPU")
        return usable

    def runtimes_see_the_gpu(self) -> Figures:
        refused = [f"{runtime}: {why}" for runtime, why in self._refusals.items() if why]
        assert not refused, "; ".join(refused)
        return dict.fromkeys(self._refusals, "sees it")

    # NVML

    @contextlib.contextmanager
    def _load(self) -> Iterator[int]:
        """Hold memory and multiply matrices in another process; yield its id."""
        device, size = ("cpu", 64) if self.gpu is None else ("cuda", 4096)
        with _running(_LOAD, device, _LOAD_MIB, size) as pid:
            yield pid

    def nvml_shows_a_known_load(self) -> Figures:
        idle = self._sampled()
        with self._load():
            busy = self._sampled()
        assert idle.memory_mib is not None, "the card tells no memory"
        assert busy.memory_mib is not None
        assert busy.utilization_percent is not None, "the card tells no utilisation"
        assert busy.utilization_percent > 80, f"{busy.utilization_percent} % under full load"
        more_mib = busy.memory_mib - idle.memory_mib
        assert _LOAD_MIB < more_mib < _LOAD_MIB + 2048, f"{more_mib:.0f} MiB more"
        return {"idle": idle, "under load": busy, "memory of the load, MiB": round(more_mib)}

    def _sampled(self, seconds: float = 2.0) -> Any:
        sampler = nvml.GpuSampler([self.card])
        time.sleep(seconds)
        [use], _ = sampler.stop()
        return use

    def a_foreign_process_is_seen(self) -> Figures:
        nvml.refuse_foreign_processes([self.card])
        with self._load() as pid:
            seen = nvml.foreign_processes([self.card])
            assert pid in sum(seen.values(), ()), f"{pid} is not among {dict(seen)}"
            assert not nvml.foreign_processes([self.card], own_pids=[pid])
        nvml.refuse_foreign_processes([self.card])
        return {"seen": seen}

    # The search

    @cached_property
    def _space_file(self) -> Path:
        return tiny.write_space(self.folder, model_space(self.gpu, self._usable))

    @property
    def _search(self) -> SearchOnGpu:
        study = StudyDirectory(self.folder / "results" / "tiny")
        return SearchOnGpu(study, self.gpu.name if self.gpu is not None else None)

    def a_search(self) -> Figures:
        arguments = ["run", self._space_file, "--cache", self.cache, "--sampler", "random"]
        optimizer = Optimizer(arguments, self.folder)
        try:
            code = optimizer.wait(_SEARCH_SECONDS)
            assert code == 0, f"exit code {code}: {optimizer.errors or optimizer.output}"
        finally:
            optimizer.end()
        search = self._search
        search.assert_measured(self._space.budget.trials)
        best = search.study.read_json(search.study.summary)["best"]
        return {
            "outcomes": [record.outcome for record in search.records],
            "artefact of the best": best["config"]["models"][0]["artifact"],
        }

    def parity(self) -> Figures:
        search = self._search
        if not search.study.prepared.exists():
            raise CannotRunError("the search judged no artefact")
        cosines = {name: search.assert_near_the_reference(name) for name in search.artifacts}
        assert cosines, "no artefact"
        return {f"mean cosine of {name}": cosine for name, cosine in cosines.items()}

    # Memory

    @cached_property
    def _space(self) -> Space:
        return open_space(self._space_file)

    def _built(self, spec: ArtifactSpec, engines: EngineSettings | None = None) -> Path:
        cache, log = ArtifactCache(self.cache), self.folder / "build.log"
        with BuildProcess(cache, log, threads=2, engines=engines) as builds:
            return builds.build(spec, self._space.models[0]).path

    def _served_by(self, processes: int) -> ServingConfig:
        """The baseline, served by some model processes on the GPU."""
        space = self._space.search_space
        config = space.config(space.baseline)
        groups = tuple(replace(group, count=processes) for group in config.models[0].groups)
        return replace(config, models=(replace(config.models[0], groups=groups),))

    @cached_property
    def _files(self) -> Mapping[str, ModelFiles]:
        [served] = self._served_by(1).models
        model = self._space.models[0]
        with BuildProcess(
            ArtifactCache(self.cache), self.folder / "build.log", threads=2
        ) as builds:
            outputs = builds.prepare_model(model).outputs
        files = ModelFiles(self._built(served.artifact), model.payloads, outputs)
        return {served.name: files}

    def _session(self) -> ServingSession:
        return embedded_session(
            Path(tempfile.mkdtemp(dir=self.folder)),
            gpus=(self.gpu,) if self.gpu is not None else (),
        )

    def memory_of_processes(self) -> Figures:
        taken = {}
        with self._session() as session:
            for processes in (1, PROCESSES):
                served = session.serve(self._served_by(processes), self._files)
                assert len(served.processes) == processes
                taken[processes] = session.memory_of_models()
                session.retire(wait=True)
        one, several = (memory.device_mib or 0.0 for memory in taken.values())
        assert one > 0
        assert 1.5 * one < several < (PROCESSES + 1) * one, f"{one:.0f} and {several:.0f} MiB"
        return {f"{number} of them": memory for number, memory in taken.items()}

    def memory_is_returned(self) -> Figures:
        with self._session() as session:
            first = session.serve(self._served_by(1), self._files).server.pid
            session.retire(wait=True)
            empty = self._in_use_mib()
            session.serve(self._served_by(PROCESSES), self._files)
            loaded = self._in_use_mib()
            session.retire(wait=True)
            end = time.monotonic() + _RELEASE_SECONDS
            while self._in_use_mib() > empty + _KEPT_MIB and time.monotonic() < end:
                time.sleep(0.1)
            after = self._in_use_mib()
            again = session.serve(self._served_by(1), self._files).server.pid
        assert loaded > empty + _KEPT_MIB, "the models take no memory"
        assert after <= empty + _KEPT_MIB, f"{after - empty:.0f} MiB are kept"
        assert first == again, "the server was restarted in between"
        return {"MiB in use: empty": empty, "loaded": loaded, "after unload": after}

    def _in_use_mib(self) -> float:
        in_use = nvml.memory_in_use_mib([self.card])
        assert in_use is not None, "the card tells no memory"
        return in_use

    def out_of_memory(self) -> Figures:
        if self.gpu is None:
            raise CannotRunError("a CPU has no memory of its own that another process could fill")
        with self._session() as session:
            with _running(_BALLAST):
                try:
                    session.serve(self._served_by(1), self._files)
                except TrialFailure as error:
                    failure = str(error)
                else:
                    raise AssertionError("the model was loaded on a full GPU")
            session.serve(self._served_by(1), self._files)
        assert "memory" in failure, failure
        return {"failure": failure, "afterwards": "the same model loads"}

    # Engines

    def cuda_graphs(self) -> Figures:
        if self.gpu is None:
            raise CannotRunError("an engine is built on a GPU, and there is none")
        if find_spec("tensorrt") is None:
            raise CannotRunError(
                "the tensorrt package is not installed; `make test-gpu` serves engines in NVIDIA's "
                "container"
            )
        plan = self._built(_ENGINE, EngineSettings("local", "", self.gpu)) / "model.plan"
        layers = _engine_on_gpu("layers", plan)
        fused = fused_attentions(layers)
        assert fused == _LAYERS, f"{fused} of {_LAYERS} attentions are one kernel: {layers}"
        times = _engine_on_gpu("graphs", plan)
        assert times["largest_difference"] == 0.0, times
        return {"fused attentions": fused, **times}


@contextlib.contextmanager
def _running(code: str, *arguments: object) -> Iterator[int]:
    """Run a program until the end of the block, once it says that it is ready; yield its id."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                errors.seek(0)
                raise AssertionError(f"the load did not start: {errors.read()[-300:].strip()}")
            yield process.pid
        finally:
            process.kill()


def _engine_on_gpu(command: str, plan: Path) -> Any:
    done = subprocess.run(
        [sys.executable, str(engine_on_gpu.__file__), command, str(plan)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str], cache: Path | None = None) -> int:
    """Run the checks and return the exit code.

    Args:
        cache: of artefacts; None for an empty one.
    """
    parser = argparse.ArgumentParser(description="Check the embedded server on a GPU.")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with a fake NVML")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu_embedded")
    given = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="gpu-embedded-"))
    try:
        with rehearsal() if given.rehearse else contextlib.nullcontext():
            return _check(folder, cache or folder / "cache", given.results, rehearse=given.rehearse)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(folder: Path, cache: Path, results: Path, *, rehearse: bool) -> int:
    present = nvml.present_gpus()
    if not present:
        print("no NVIDIA driver answers on this machine")
        return 3
    checks = Checks(None if rehearse else present[0], present[0].uuid, folder, cache)
    notes = [
        f"- {REHEARSAL}: no figure below is one of a GPU" if rehearse else f"- {present[0]}",
        f"- driver {nvml.driver_version()}, Python {platform.python_version()}",
        "- a BERT with random weights, on the embedded server",
    ]
    report = run_checks("The embedded server on a GPU", notes, checks.all(), results)
    print(f"wrote {results / 'report.md'}; exit code {report.exit_code}")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
