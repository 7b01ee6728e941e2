"""What doctor finds on machines of every kind, what follows from it, and how it is printed."""

from __future__ import annotations

import importlib
import io
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from optimizer.cli import commands
from optimizer.cli.doctor import show_examination
from optimizer.commands import doctor
from optimizer.commands.doctor import checks as looking
from optimizer.commands.doctor import docker, examine, machine, software
from optimizer.commands.doctor import gpus as graphics
from optimizer.commands.doctor.checks import (
    Ability,
    Area,
    CheckResult,
    Examination,
    NotChecked,
    start_check,
)
from optimizer.configuration.releases import tensorrt_image, triton_image
from optimizer.errors import RequirementError
from tests.unit.fake_docker import FakeDocker
from tests.unit.fake_machine import (
    CACHE,
    NO_PERMISSION,
    PACKAGES,
    RESULTS,
    FakeMachine,
)
from tests.unit.fake_nvml import Card

GOLDEN = Path(__file__).parents[1] / "golden"
# The command's name hides its module.
doctor_command = importlib.import_module("optimizer.cli.doctor")

SERVER, TENSORRT = triton_image(), tensorrt_image()
SERVER_SETS = ["TRITON_SERVER_VERSION=2.69.0", "TRT_VERSION=10.16.1.11+cuda13.2"]
NOT_INSTALLED = RequirementError(
    "the embedded Triton is not installed", "pip install 'triton-cost-optimizer[embedded]'"
)
T4, A10G = Card(), Card("NVIDIA A10G", capability=(8, 6), total_mib=23028)

Look = Callable[[FakeMachine], Examination]


@pytest.fixture
def look_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Look:
    """Examines a fake machine."""

    def examined(fake: FakeMachine) -> Examination:
        fake.install(monkeypatch, tmp_path / "bus")
        return examine(CACHE, RESULTS)

    return examined


def engine_with(*images: str, nvidia: bool = True) -> FakeDocker:
    engine = FakeDocker(**dict.fromkeys(images, SERVER_SETS))
    engine.runtimes += ["nvidia"] if nvidia else []
    return engine


def gpu_machine(
    card: Card = T4, driver: str = "580.82.07", engine: FakeDocker | None = None
) -> FakeMachine:
    """A machine with one GPU, on which everything can run."""
    engine = engine or engine_with(SERVER, TENSORRT)
    packages = {**PACKAGES, "tensorrt": "10.16.1.11"}
    return FakeMachine({"GPU-1": card}, driver, 1, engine, packages, programs=("perf_analyzer",))


def found(examination: Examination, part: str) -> CheckResult:
    [finding] = [f for area in examination.areas for f in area.results if f.part == part]
    return finding


def can(examination: Examination, server: str) -> Ability:
    [ability] = [each for each in examination.abilities if each.server == server]
    return ability


def printed(examination: Examination, width: int = 80) -> str:
    file = io.StringIO()
    show_examination(Console(file=file, width=width), examination)
    return file.getvalue()


MACHINES = {
    "cpu": FakeMachine(),
    "cpu_with_docker": FakeMachine(engine=engine_with(SERVER, nvidia=False)),
    "t4": gpu_machine(),
    "no_permission": FakeMachine(
        {"GPU-1": T4}, engine=NO_PERMISSION, embedded=NOT_INSTALLED, packages={"torch": "2.13.0"}
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_of_each_kind(look_at: Look, name: str) -> None:
    text = printed(look_at(MACHINES[name]))
    assert text == (GOLDEN / f"doctor_{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "states", "code"),
    [
        ("cpu", ["ok", "missing", "missing", "missing", "unknown"], 0),
        ("cpu_with_docker", ["ok", "missing", "unknown", "missing", "unknown"], 0),
        ("t4", ["ok", "unknown", "unknown", "ok", "unknown"], 0),
        ("no_permission", ["missing", "missing", "missing", "missing", "missing"], 3),
    ],
)
def test_what_can_run_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    look_at: Look,
    name: str,
    states: list[str],
    code: int,
) -> None:
    examination = look_at(MACHINES[name])
    assert [ability.state for ability in examination.abilities] == states
    monkeypatch.setattr(doctor_command, "examine", lambda *_: examination)
    assert commands.main(["doctor"], standalone_mode=False) == code


def test_the_folders_are_those_that_the_options_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[Path, Path]] = []

    def examined(*folders: Path) -> Examination:
        asked.append((folders[0], folders[1]))
        return Examination((), ())

    monkeypatch.setattr(doctor_command, "examine", examined)
    monkeypatch.chdir(tmp_path)
    commands.main(["doctor", "--cache", "kept", "--results", "/out"], standalone_mode=False)
    assert asked == [(tmp_path / "kept", Path("/out"))]


# The processor


@pytest.mark.parametrize(
    ("flags", "limits"),
    [
        ({"avx2"}, ["no VNNI", "no BF16 in OpenVINO"]),
        ({"avx2", "avx512f"}, ["no VNNI", "no BF16 instructions"]),
        ({"avx2", "avx512f", "avx512_vnni"}, ["no BF16 instructions"]),
        ({"avx2", "avx_vnni", "avx_ne_convert"}, []),
        ({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}, []),
        (None, []),
    ],
)
def test_what_the_processor_lacks_is_said_with_what_follows(
    look_at: Look, flags: set[str] | None, limits: list[str]
) -> None:
    processor = found(look_at(FakeMachine(cpu_flags=flags)), "processor")
    description, *said = processor.detail.split("; ")
    assert description == "AMD EPYC 7R32, 8 cores (avx2)"
    assert [text.split(":")[0] for text in said] == limits


# GPUs


@pytest.mark.parametrize(
    ("card", "says", "remedy"),
    [
        (Card("Tesla V100", capability=(7, 0)), "the images need 7.5", None),
        (
            Card(mig=1),
            "divided by MIG, without an instance",
            "make instances with nvidia-smi mig -cgi, or nvidia-smi -i GPU-1 -mig 0 (as root)",
        ),
        (
            Card(pids=(30, 7)),
            "in use by processes 7, 30",
            "end processes 7, 30, or leave it out of server.gpus",
        ),
    ],
)
def test_a_card_that_trials_cannot_use_says_why(
    look_at: Look, card: Card, says: str, remedy: str | None
) -> None:
    examination = look_at(gpu_machine(card))
    gpu = found(examination, "GPU 0")
    assert (gpu.state, gpu.remedy) == ("missing", remedy)
    assert gpu.detail.endswith(says)
    assert can(examination, "docker, GPU").how == "needs a GPU that trials can use"


def test_the_instances_of_a_divided_card_are_named_as_run_takes_them(look_at: Look) -> None:
    """The answers are those of tests/unit/fake_nvml.py, not recorded on a card."""
    divided = Card("NVIDIA A100", (8, 0), 40_960, mig=1, instances=("MIG-aa", "MIG-bb"))
    examination = look_at(gpu_machine(divided))
    gpu, ability = found(examination, "GPU 0"), can(examination, "docker, GPU")
    assert gpu.state == "ok"
    assert gpu.detail.endswith(
        "divided into MIG instances 0:0 (NVIDIA A100 MIG 1g.5gb), 0:1 (NVIDIA A100 MIG 1g.5gb): "
        "name them, as in run --gpus 0:0,0:1"
    )
    assert ability.state == "ok"
    assert "on 2 x NVIDIA A100 MIG 1g.5gb, in" in ability.how


def test_one_card_that_can_be_used_is_enough(look_at: Look) -> None:
    fake = gpu_machine()
    fake.cards = {"GPU-1": Card(mig=1), "GPU-2": A10G, "GPU-3": Card("NVIDIA A10G", (8, 6))}
    ability = can(look_at(fake), "docker, GPU")
    assert ability.state == "ok"
    assert "on 2 x NVIDIA A10G, in" in ability.how


def test_bf16_is_named_where_a_card_lacks_it(look_at: Look) -> None:
    assert "no bf16 (from 8.0 on)" in found(look_at(gpu_machine(T4)), "GPU 0").detail


def test_bf16_is_not_named_where_a_card_has_it(look_at: Look) -> None:
    assert found(look_at(gpu_machine(A10G)), "GPU 0").detail == (
        "NVIDIA A10G, 23028 MiB, compute capability 8.6"
    )


def test_whether_an_older_driver_will_do_is_not_known(look_at: Look) -> None:
    examination = look_at(gpu_machine(driver="535.183.01"))
    driver, ability = found(examination, "NVIDIA driver"), can(examination, "docker, GPU")
    assert (driver.state, ability.state) == ("unknown", "unknown")
    assert driver.remedy is not None
    assert "580 or later" in driver.remedy
    assert ability.how.startswith("if the driver is new enough: TensorRT")


def test_a_card_without_a_driver_is_told_from_no_card(look_at: Look) -> None:
    without_driver = look_at(FakeMachine(on_bus=2))
    driver = found(without_driver, "NVIDIA driver")
    assert driver.detail.startswith("2 NVIDIA cards on the PCI bus, but no NVIDIA driver answers")
    assert driver.remedy is not None
    # What only a GPU needs is asked for where there is one.
    assert f"docker pull {TENSORRT}" in without_driver.remedies


def test_what_only_a_gpu_needs_is_not_asked_for_without_one(look_at: Look) -> None:
    examination = look_at(FakeMachine(engine=engine_with(nvidia=False)))
    assert found(examination, "NVIDIA driver").detail == "this machine has no NVIDIA GPU"
    assert found(examination, "tensorrt").remedy is None
    assert next(iter(examination.remedies)) == f"docker pull {SERVER}"
    assert len(examination.remedies) == 2


# Docker


@pytest.mark.parametrize(
    ("toolkit", "state", "remedy"),
    [(True, "unknown", "nvidia-ctk runtime"), (False, "missing", "install nvidia-container-too")],
)
def test_an_engine_that_does_not_list_nvidias_runtime(
    look_at: Look, toolkit: bool, state: str, remedy: str
) -> None:
    fake = gpu_machine(engine=engine_with(SERVER, nvidia=False))
    fake.programs = ("nvidia-container-runtime-hook",) if toolkit else ()
    examination = look_at(fake)
    runtime = found(examination, "NVIDIA runtime")
    assert (runtime.state, can(examination, "docker, GPU").state) == (state, state)
    assert runtime.remedy is not None
    assert runtime.remedy.startswith(remedy)


def test_every_image_that_holds_a_server_is_told_and_no_other(look_at: Look) -> None:
    engine = engine_with(
        SERVER,
        "tritonserver-with-torch:1",
        "nvcr.io/nvidia/tritonserver:26.05-py3-sdk",
        "python:3.11",
        "registry.here/tritonserver:26.07-py3",
    )
    engine.environments["registry.here/tritonserver:26.07-py3"] = None
    [area] = [area for area in look_at(gpu_machine(engine=engine)).areas if area.name == "Docker"]
    assert [(f.part, f.state, f.detail) for f in area.results] == [
        ("Docker engine", "ok", "28.5.1"),
        ("NVIDIA runtime", "ok", "the engine knows it"),
        ("tritonserver:26.05-py3", "ok", "Triton 2.69.0, TensorRT 10.16.1.11"),
        ("registry.here/tritonserver:26.07-py3", "ok", "Triton 2.71.0, TensorRT 11.1.0.106"),
        ("tritonserver-with-torch:1", "ok", "Triton 2.69.0, TensorRT 10.16.1.11"),
        (
            "tensorrt:26.05-py3",
            "missing",
            "not here; engines.build_in: container needs it",
        ),
    ]


def test_an_engine_without_a_server_lacks_the_image(look_at: Look) -> None:
    examination = look_at(gpu_machine(engine=engine_with(TENSORRT)))
    assert can(examination, "docker, GPU").how == "needs an image of tritonserver"
    assert found(examination, "tritonserver:26.05-py3").remedy == f"docker pull {SERVER}"


def test_an_engine_that_does_not_answer_leaves_its_servers_unknown(
    look_at: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = gpu_machine()
    assert isinstance(fake.engine, FakeDocker)
    monkeypatch.setattr(fake.engine, "info", lambda: time.sleep(60))
    monkeypatch.setattr(looking, "_SECONDS", 0.5)
    examination = look_at(fake)
    assert found(examination, "Docker engine").detail == "no answer within 0.5 s"
    assert can(examination, "docker, GPU") == Ability(
        "docker, GPU",
        "unknown",
        "if Docker answers: TensorRT and ONNX Runtime on 1 x NVIDIA T4, in an image of "
        "tritonserver; engines.build_in: trtexec",
    )
    assert can(examination, "embedded, CPU").state == "ok"


# Where engines can be built


@pytest.mark.parametrize(
    ("images", "local", "places"),
    [
        ([SERVER], None, "trtexec"),
        ([SERVER, tensorrt_image("26.07")], "11.1.0.106", "trtexec"),
        ([SERVER, TENSORRT], None, "trtexec, container"),
        ([SERVER, TENSORRT], "10.16.1.11", "trtexec, container, local"),
    ],
)
def test_engines_are_built_where_the_servers_own_tensorrt_is(
    look_at: Look, images: list[str], local: str | None, places: str
) -> None:
    fake = gpu_machine(engine=engine_with(*images))
    fake.packages = {**PACKAGES, **({"tensorrt": local} if local is not None else {})}
    ability = can(look_at(fake), "docker, GPU")
    assert ability.how.endswith(f"; engines.build_in: {places}")


def test_another_tensorrt_than_the_servers_is_named_with_the_one_that_is_wanted(
    look_at: Look,
) -> None:
    fake = gpu_machine()
    fake.packages = {**PACKAGES, "tensorrt": "11.1.0.106"}
    local = found(look_at(fake), "tensorrt")
    assert local.state == "missing"
    assert "11.1.0.106, but the server's is 10.16.1.11" in local.detail
    assert local.remedy is not None
    assert local.remedy.endswith(" tensorrt==10.16.1.11")


def test_without_an_image_tensorrt_is_held_against_the_default_release(look_at: Look) -> None:
    fake = gpu_machine(engine=engine_with())
    assert found(look_at(fake), "tensorrt").detail == "10.16.1.11, that of release 26.05"


def test_the_tensorrt_that_is_wanted_is_that_of_an_image_that_is_here(look_at: Look) -> None:
    engine = engine_with("tritonserver:own")
    engine.environments["tritonserver:own"] = ["TRT_VERSION=11.2.1.4"]
    fake = gpu_machine(engine=engine)
    fake.packages = PACKAGES
    local = found(look_at(fake), "tensorrt")
    assert local.remedy is not None
    assert local.remedy.endswith(" tensorrt==11.2.1.4")


# Packages and disks


def test_the_embedded_server_needs_what_makes_graphs_and_names_its_runtimes(look_at: Look) -> None:
    packages = {"onnx": "1", "onnxruntime": "1", "openvino": "1"}
    ability = can(look_at(FakeMachine(packages=packages)), "embedded, CPU")
    assert (ability.state, ability.how) == (
        "ok",
        "onnxruntime, openvino; ONNX files alone without onnxscript, torch, transformers",
    )


def test_without_graph_packages_nothing_can_be_served(look_at: Look) -> None:
    examination = look_at(FakeMachine(packages={"torch": "1"}))
    assert {ability.state for ability in examination.abilities} == {"missing"}
    assert can(examination, "embedded, CPU").how == "needs onnx, onnxruntime"
    assert not examination.can_serve


@pytest.mark.parametrize(
    ("fake", "part", "remedy"),
    [
        (FakeMachine(shared_gib=(0.0625, 0.0625)), "/dev/shm", "mount -o remount"),
        (FakeMachine(shared_gib=(8.0, 0.5)), "/dev/shm", "remove what processes"),
        (FakeMachine(disk_free_gib=4.9), "cache", "make room, or name another folder with --cach"),
        (FakeMachine(disk_free_gib=4.9), "results", "make room, or name another folder with --re"),
        (FakeMachine(writable=False), "results", "name another folder with --results"),
    ],
)
def test_too_little_room_is_said_with_its_remedy_and_keeps_nothing_from_running(
    look_at: Look, fake: FakeMachine, part: str, remedy: str
) -> None:
    examination = look_at(fake)
    finding = found(examination, part)
    assert finding.state == "missing"
    assert finding.remedy is not None
    assert finding.remedy.startswith(remedy)
    assert examination.can_serve


# Looking


def test_a_probe_that_hangs_is_unknown_and_waited_for_once() -> None:
    over = threading.Event()
    began = time.monotonic()
    waits = [start_check(over.wait, 0.2), start_check(over.wait, 0.2), start_check(lambda: 7, 0.2)]
    seen = [wait() for wait in waits]
    assert seen == [NotChecked("unknown", "no answer within 0.2 s")] * 2 + [7]
    assert time.monotonic() - began < 5
    over.set()


def test_what_a_probe_raises_says_what_is_missing_or_why_it_is_not_known() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert start_check(lambda: fail(NOT_INSTALLED))() == NotChecked(
        "missing", NOT_INSTALLED.lacks, NOT_INSTALLED.remedy
    )
    assert start_check(lambda: fail(OSError("broken")))() == NotChecked(
        "unknown", "OSError: broken"
    )


PROBES: dict[str, tuple[object, str]] = {
    "processor": (machine, "processor"),
    "memory": (machine, "memory"),
    "Python": (machine, "python"),
    "/dev/shm": (machine, "shared_memory"),
    "cache": (machine, "disk"),
    "perf_analyzer": (software, "second_opinion"),
    "packages": (software, "packages"),
    "embedded server": (doctor, "find_embedded_runtime"),
    "NVIDIA driver": (graphics, "graphics"),
    "Docker engine": (docker, "docker"),
}


@pytest.mark.parametrize("part", PROBES)
def test_a_part_that_cannot_be_looked_at_hides_no_other(
    look_at: Look, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    whole = look_at(gpu_machine())
    place, name = PROBES[part]
    monkeypatch.setattr(place, name, fail)
    broken = examine(CACHE, RESULTS)
    finding = found(broken, part)
    assert (finding.state, finding.detail) == ("unknown", "ZeroDivisionError: a defect")
    lost = {f.part for a in whole.areas for f in a.results if f not in of(broken)}
    depends = {"packages": set(PACKAGES) | {"tensorrt", "embedded server"},
               "cache": {"results"}, "NVIDIA driver": {"GPU 0", "NVIDIA runtime"},
               "Docker engine": {"NVIDIA runtime", "tritonserver:26.05-py3", "tensorrt:26.05-py3",
                                 "tensorrt"}}  # fmt: skip
    assert lost <= {part, *depends.get(part, ())}
    assert "What can run" in printed(broken)


def of(examination: Examination) -> list[CheckResult]:
    return [finding for area in examination.areas for finding in area.results]


# Printing

STATES: list[Literal["ok", "missing", "unknown"]] = ["ok", "missing", "unknown"]
WORDS = st.lists(st.text("abz'[]/:=-", min_size=1, max_size=60), min_size=1, max_size=12).map(
    " ".join
)
FINDINGS = st.builds(CheckResult, WORDS, st.sampled_from(STATES), WORDS, st.none() | WORDS)


@given(st.lists(FINDINGS, max_size=8), st.integers(20, 200))
def test_remedies_are_whole_lines_each_once_however_narrow_it_is(
    findings: list[CheckResult], width: int
) -> None:
    abilities = (Ability("remote", "unknown", "where"),)
    lines = printed(Examination((Area("x", tuple(findings)),), abilities), width).split("\n")
    rest = lines[lines.index("Remedies") + 1 :] if "Remedies" in lines else []
    remedies = dict.fromkeys(f.remedy for f in findings if f.remedy is not None)
    assert [line.removeprefix("    ") for line in rest[1::2]] == list(remedies)


@given(st.lists(FINDINGS, min_size=1, max_size=8))
def test_every_part_is_printed_with_its_state_and_all_that_was_found(
    findings: list[CheckResult],
) -> None:
    text = printed(Examination((Area("x", tuple(findings)),), ()))
    words = " ".join(text.split())
    for finding in findings:
        assert f"{finding.part} {finding.state} {finding.detail}" in words


@pytest.mark.parametrize("width", [80, 100, 120])
def test_what_is_found_keeps_to_the_width(look_at: Look, width: int) -> None:
    text = printed(look_at(MACHINES["t4"]), width)
    above = text.partition("Remedies")[0]
    assert max(len(line) for line in above.splitlines()) <= width


def test_colour_is_for_terminals_and_not_where_it_is_unwanted(
    look_at: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    examination = look_at(FakeMachine())

    def drawn() -> str:
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=80, color_system="standard")
        show_examination(console, examination)
        return file.getvalue()

    assert "\x1b[32mok\x1b[0m" in drawn()
    assert "\x1b" not in printed(examination)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in drawn()


_EACH = "measures a configuration on each of 2 x NVIDIA T4"


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ([Card()], []),
        ([Card(), Card()], [f"run --gpus all {_EACH}"]),
        (
            [Card(), Card(), Card("NVIDIA A10G", (8, 6))],
            [f"run --gpus with their numbers {_EACH}"],
        ),
    ],
)
def test_several_gpus_of_one_model_may_run_trials_at_once(
    look_at: Look, cards: list[Card], told: list[str]
) -> None:
    present = {f"GPU-{n}": card for n, card in enumerate(cards)}
    examined = look_at(replace(gpu_machine(), cards=present))
    results = [result for area in examined.areas for result in area.results]
    assert [each.detail for each in results if each.part == "trials at once"] == told
