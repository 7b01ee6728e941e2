"""CPU and memory limits of this process by its control groups, version 1 and 2.

All parents of the process's group are read, since any of them may set the limit. In a container the
process's own group is the root of the mounted hierarchy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_VERSION_2 = "cgroup2"


@dataclass(frozen=True)
class Throttling:
    """CPU throttling so far.

    Attributes:
        periods: number of periods in which the quota was used up.
        seconds: time for which cores were throttled, summed over cores.
    """

    periods: int
    seconds: float

    def since(self, before: Throttling) -> Throttling:
        """Return the throttling after `before` was read."""
        return Throttling(self.periods - before.periods, self.seconds - before.seconds)


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return the CPU quota in cores, such as 0.5; None without a quota."""
    quotas = [quota for group in _groups("cpu", proc) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def memory_limit_bytes(proc: Path = _PROC) -> int | None:
    """Return the memory limit; None without a limit."""
    limits = [limit for limit, _ in _memory(proc)]
    return min(limits, default=None)


def free_memory_bytes(proc: Path = _PROC) -> int | None:
    """Return the unused part of the memory limit; None without a limit.

    Cached files are unused: the kernel drops them where the memory is needed.
    """
    return min((limit - used for limit, used in _memory(proc)), default=None)


def throttling(proc: Path = _PROC) -> Throttling | None:
    """Return the throttling by the strictest quota so far; None without a quota."""
    quotas = [_throttling(group) for group in _groups("cpu", proc) if _quota(group) is not None]
    return max(quotas, key=lambda each: each.seconds, default=None)


def _quota(group: Path) -> float | None:
    both = _text(group / "cpu.max").split()
    if not both:
        both = [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
    quota, period = (_integer(text) for text in both)
    return quota / period if quota is not None and quota > 0 and period else None


def _memory(proc: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of every group with a limit, in bytes, without cached files."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for group in _groups("memory", proc):
        for limit_file, used_file in names:
            limit, used = _integer(_text(group / limit_file)), _integer(_text(group / used_file))
            if limit is not None:
                yield limit, max(0, (used or 0) - _cached_files(group))


def _cached_files(group: Path) -> int:
    """Return the bytes of files that a group and its children have in memory."""
    counts = _counts(group / "memory.stat")
    # Version 1 counts the group itself under the names that are totals in version 2.
    names = ("inactive_file", "active_file")
    return sum(counts.get(f"total_{name}", counts.get(name, 0)) for name in names)


def _counts(file: Path) -> dict[str, int]:
    lines = _text(file).splitlines()
    return {name: int(count) for name, _, count in (line.partition(" ") for line in lines)}


def _throttling(group: Path) -> Throttling:
    counts = _counts(group / "cpu.stat")
    seconds = counts.get("throttled_usec", 0) / 1e6 + counts.get("throttled_time", 0) / 1e9
    return Throttling(counts.get("nr_throttled", 0), seconds)


def _groups(controller: str, proc: Path) -> list[Path]:
    """Return the folders of the groups that limit this process, from its own to the root."""
    for line in _text(proc / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        wanted = _VERSION_2 if not controllers else controller
        if controllers and controller not in controllers.split(","):
            continue
        for root, mounted in _mounts(wanted, proc):
            folder = _within(PurePosixPath(group), root, mounted)
            upwards = [folder, *folder.parents]
            own = upwards[: upwards.index(mounted) + 1]
            if any((each / name).exists() for each in own for name in _FILES[controller]):
                return own
    return []


_FILES = {
    "cpu": ("cpu.max", "cpu.cfs_quota_us"),
    "memory": ("memory.max", "memory.limit_in_bytes"),
}


def _within(group: PurePosixPath, root: PurePosixPath, mounted: Path) -> Path:
    """Return the folder of a group in a mount of everything below `root`."""
    return mounted / group.relative_to(root) if group.is_relative_to(root) else mounted


def _mounts(wanted: str, proc: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yield root and mount point of every hierarchy: version 2, or a controller of version 1."""
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == _VERSION_2 == wanted or (kind == "cgroup" and wanted in options.split(",")):
            root, mounted = before.split()[3:5]
            yield PurePosixPath(root), Path(mounted)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _integer(text: str) -> int | None:
    """Return a number; None for "max", and where there is none."""
    return int(text) if text.removeprefix("-").isdecimal() else None
