"""Quotas and limits of control groups, in trees that are made up and in a group of this kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.machine import cores, slots
from optimizer.machine import utilisation as use
from optimizer.machine.cgroups import (
    Throttling,
    cpu_quota,
    free_memory_bytes,
    memory_limit_bytes,
    throttling,
)
from optimizer.machine.fingerprint import Machine, this_machine
from optimizer.measurement.resource_use import MachineUse
from tests.unit.studies import MACHINE

MIB = 2**20


class Tree:
    """A made-up /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.proc.mkdir()
        self._sys = folder / "cgroup"
        self._groups: list[str] = []
        self._mounts: list[str] = []

    def version_2(
        self, group: str, files: Mapping[str, Mapping[str, str]], root: str = "/"
    ) -> Path:
        return self._hierarchy("", "cgroup2", "rw", group, files, root)

    def version_1(
        self, controllers: str, group: str, files: Mapping[str, Mapping[str, str]], root: str = "/"
    ) -> Path:
        return self._hierarchy(controllers, "cgroup", f"rw,{controllers}", group, files, root)

    def _hierarchy(
        self,
        controllers: str,
        kind: str,
        options: str,
        group: str,
        files: Mapping[str, Mapping[str, str]],
        root: str,
    ) -> Path:
        mounted = self._sys / (controllers or "unified")
        for folder, content in files.items():
            (mounted / folder).mkdir(parents=True, exist_ok=True)
            for name, text in content.items():
                (mounted / folder / name).write_text(text + "\n")
        self._groups.append(f"{len(self._groups)}:{controllers}:{group}")
        self._mounts.append(
            f"30 29 0:26 {root} {mounted} rw,nosuid shared:4 - {kind} cgroup {options}"
        )
        (self.proc / "cgroup").write_text("\n".join(self._groups) + "\n")
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")
        return mounted


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000", None), ("50000 100000", 0.5), ("250000 100000", 2.5), ("200000 50000", 4.0)],
)
def test_a_quota_of_version_2(tree: Tree, text: str, quota: float | None) -> None:
    tree.version_2("/", {".": {"cpu.max": text}})
    assert cpu_quota(tree.proc) == quota


@pytest.mark.parametrize(("quota_us", "quota"), [("-1", None), ("50000", 0.5), ("200000", 2.0)])
def test_a_quota_of_version_1(tree: Tree, quota_us: str, quota: float | None) -> None:
    files = {"cpu.cfs_quota_us": quota_us, "cpu.cfs_period_us": "100000"}
    tree.version_1("cpu,cpuacct", "/docker/1a2b", {".": files}, root="/docker/1a2b")
    assert cpu_quota(tree.proc) == quota, "a container sees its own group as the root"


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_quota_of_all_parents_counts(tree: Tree, version: int) -> None:
    def files(quota: str) -> Mapping[str, str]:
        if version == 2:
            return {"cpu.max": f"{quota.replace('-1', 'max')} 100000"}
        return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}

    groups = {
        "kubepods": files("400000"),
        "kubepods/pod7": files("150000"),
        "kubepods/pod7/app": files("-1"),
        "other": files("10000"),
    }
    if version == 2:
        tree.version_2("/kubepods/pod7/app", groups)
    else:
        tree.version_1("cpu", "/kubepods/pod7/app", groups)
    assert cpu_quota(tree.proc) == 1.5


def test_the_controller_may_be_of_version_1_beside_an_empty_version_2(tree: Tree) -> None:
    tree.version_2("/", {".": {"cgroup.procs": ""}})
    tree.version_1("memory", "/", {".": {"memory.limit_in_bytes": str(512 * MIB)}})
    tree.version_1("cpu", "/", {".": {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}})
    assert cpu_quota(tree.proc) == 3.0
    assert memory_limit_bytes(tree.proc) == 512 * MIB


def test_memory_is_limited_by_the_least_and_free_by_what_is_used(tree: Tree) -> None:
    tree.version_2(
        "/pod/app",
        {
            "pod": {"memory.max": str(800 * MIB), "memory.current": str(700 * MIB)},
            "pod/app": {"memory.max": str(600 * MIB), "memory.current": str(100 * MIB)},
        },
    )
    assert memory_limit_bytes(tree.proc) == 600 * MIB
    assert free_memory_bytes(tree.proc) == 100 * MIB


def test_cached_files_are_free_memory(tree: Tree) -> None:
    limit = {"memory.limit_in_bytes": str(800 * MIB), "memory.usage_in_bytes": str(700 * MIB)}
    own = f"inactive_file {MIB}\nactive_file {MIB}\n"
    totals = f"total_inactive_file {300 * MIB}\ntotal_active_file {200 * MIB}"
    tree.version_1("memory", "/", {".": {**limit, "memory.stat": own + totals}})
    assert free_memory_bytes(tree.proc) == 600 * MIB


def test_cached_files_are_free_memory_in_version_2(tree: Tree) -> None:
    limit = {"memory.max": str(800 * MIB), "memory.current": str(700 * MIB)}
    stat = f"anon {200 * MIB}\ninactive_file {300 * MIB}\nactive_file {200 * MIB}"
    tree.version_2("/", {".": {**limit, "memory.stat": stat}})
    assert free_memory_bytes(tree.proc) == 600 * MIB


def test_without_control_groups_nothing_is_limited(tree: Tree) -> None:
    assert (cpu_quota(tree.proc), memory_limit_bytes(tree.proc)) == (None, None)
    assert (free_memory_bytes(tree.proc), throttling(tree.proc)) == (None, None)
    tree.version_2("/", {".": {"cpu.max": "max 100000", "memory.max": "max"}})
    assert (cpu_quota(tree.proc), memory_limit_bytes(tree.proc)) == (None, None)
    assert throttling(tree.proc) is None


def test_what_was_withheld_is_counted_in_both_versions(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / str(version)).mkdir()
    one, two = Tree(tmp_path / "1"), Tree(tmp_path / "2")
    two.version_2(
        "/", {".": {"cpu.max": "1000 2000", "cpu.stat": "nr_throttled 7\nthrottled_usec 2500000"}}
    )
    one.version_1(
        "cpu",
        "/",
        {
            ".": {
                "cpu.cfs_quota_us": "1000",
                "cpu.cfs_period_us": "2000",
                "cpu.stat": "nr_periods 9\nnr_throttled 7\nthrottled_time 2500000000",
            }
        },
    )
    assert throttling(one.proc) == throttling(two.proc) == Throttling(7, 2.5)
    assert Throttling(9, 3.0).since(Throttling(7, 2.5)) == Throttling(2, 0.5)


@pytest.fixture
def of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


@pytest.mark.usefixtures("of_64")
@pytest.mark.parametrize(
    ("quota", "count", "text"),
    [
        (None, 64, "64 cores"),
        (64.0, 64, "64 cores"),
        (2.0, 2, "2 cores (the CPU quota is 2 cores)"),
        (1.5, 1, "1 core (the CPU quota is 1.5 cores)"),
        (0.5, 1, "1 core (the CPU quota is 0.5 cores)"),
    ],
)
def test_everything_that_counts_cores_holds_to_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int, text: str
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    slot, machine = slots.local_slot(), this_machine("embedded")
    assert len({*slot.cores, *slot.client_cores}) == count
    assert slots.local_hardware().cores == len(slot.cores)
    assert (machine.cores, machine.cores_text) == (count, text)
    assert text in machine.summary
    assert text in machine.hardware


def test_memory_is_the_least_of_the_machines_and_the_control_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "memory_limit_bytes", lambda: 2 * 2**30)
    monkeypatch.setattr(cores, "free_memory_bytes", lambda: 300 * MIB)
    assert slots.local_hardware().memory_mib == 2048
    assert this_machine("embedded").memory_gib == 2
    assert cores.unused_memory_bytes() == 300 * MIB
    monkeypatch.setattr(cores, "memory_limit_bytes", lambda: 2**62)
    assert slots.local_hardware().memory_mib < 2**40


def test_a_quota_makes_another_machine_and_none_leaves_the_digests_of_earlier_studies() -> None:
    half = replace(MACHINE, cpu_quota=0.5)
    assert half.digest != MACHINE.digest
    assert "cpu_quota" not in MACHINE.to_json()
    assert MACHINE.digest == "efc00688f253"
    for machine in (MACHINE, half):
        assert Machine.from_json(json.loads(json.dumps(machine.to_json()))) == machine


def test_time_that_was_withheld_in_a_level_is_a_warning() -> None:
    level = MachineUse(8.0, 1, 3.0, 100.0, 0.0)
    assert use.withheld_time(level) is None
    assert use.withheld_time(replace(level, throttled_seconds=0.05)) is None
    assert use.withheld_time(replace(level, throttled_seconds=3.25)) == (
        "the CPU quota withheld cores for 3.2 s in 8.0 s: "
        "these are the figures of this quota, not of whole cores"
    )


_IN_A_GROUP = """
import json, sys, time
from pathlib import Path
from optimizer.machine.cgroups import cpu_quota, throttling
from optimizer.machine.cores import usable_cores
from optimizer.machine.fingerprint import this_machine
Path(sys.argv[1], "cgroup.procs").write_text("0")
before, end = throttling(), time.monotonic() + 0.6
while time.monotonic() < end:
    pass
machine = this_machine("embedded")
withheld = throttling().since(before).seconds
print(json.dumps([cpu_quota(), len(usable_cores()), machine.cores_text, withheld]))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this kernel with a tenth of a core, where this user may make one."""
    name = f"optimizer-test-{uuid.uuid4().hex[:8]}"
    for files in (
        {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "10000"},
        {"cpu.max": "10000 100000"},
    ):
        for parent in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")):
            folder = parent / name
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                if all((folder / file).exists() for file in files):
                    for file, text in files.items():
                        (folder / file).write_text(text)
                    yield folder
                    return
            finally:
                folder.rmdir()
    pytest.skip("no control group with a CPU quota can be made here")


def test_a_quota_of_this_kernel_is_seen_and_what_it_withholds(group: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_GROUP, str(group)],
        capture_output=True,
        text=True,
        check=True,
    )
    quota, count, text, withheld = json.loads(done.stdout)
    assert (quota, count, text) == (0.1, 1, "1 core (the CPU quota is 0.1 cores)")
    assert withheld > 0
