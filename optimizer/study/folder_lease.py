"""The lease of a study in its folder, which may be on a file system that several hosts share.

Each holder has a file whose name is one higher than that of the holder before, and the highest
counts. A file is made by a hard link, which one of several processes can make and which has its
whole content at once, on NFS as well. It is never removed but for a higher one, so that a process
that was held up cannot take what was taken meanwhile. The holder raises the file's time stamp,
which is only a number here, and empties the file in the end: neither needs room on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from optimizer.errors import StorageError, storage_errors
from optimizer.files.atomic import write_json
from optimizer.files.untrusted import UnreadableError, parse_json
from optimizer.study.lease import Holder, LeaseState

_STEP_SECONDS = 2
"""By which the time stamp is raised: some file systems keep no shorter time."""

_WITHOUT_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}
_MOST_BYTES = 4096
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_UNFINISHED = re.compile(r"[0-9a-f]{32}|\.[0-9a-f]{32}\.new")


class FolderLease:
    """A `LeaseStore` of files in a folder.

    Args:
        folder: results/<study>/lease; made when the lease is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder.parent)
        self._folder = folder
        self._number = 0

    def read(self) -> LeaseState:
        """Return the lease as it is now, see `LeaseStore.read`."""
        with self._reading():
            while number := self._highest():
                with suppress(FileNotFoundError):
                    return _state(self._file(number))
        return LeaseState()

    def take(self, read: LeaseState, own: Holder) -> bool:
        """Take the lease, see `LeaseStore.take`."""
        number = int(read.token or 0) + 1
        content = self._folder / uuid.uuid4().hex
        with storage_errors(self._folder):
            write_json(content, asdict(own))
            try:
                if not _link(content, self._file(number)):
                    return False
            finally:
                content.unlink(missing_ok=True)
            if self._highest() != number:  # the one that was read is long gone
                self._file(number).unlink(missing_ok=True)
                return False
            self._number = number
            self._remove_others()
        return True

    def beat(self) -> bool:
        """Raise the number, see `LeaseStore.beat`."""
        with self._reading():
            if self._highest() != self._number:
                return False
            own = self._file(self._number)
            stamp = int(own.stat().st_mtime) + _STEP_SECONDS
            os.utime(own, (stamp, stamp))
        return True

    def release(self) -> None:
        """Free the lease, see `LeaseStore.release`."""
        with self._reading():
            if self._highest() == self._number:
                os.truncate(self._file(self._number), 0)

    def _file(self, number: int) -> Path:
        return self._folder / str(number)

    def _highest(self) -> int:
        """Return the highest number of a file; 0 without files."""
        try:
            names = [path.name for path in self._folder.iterdir()]
        except FileNotFoundError:
            return 0
        return max((int(name) for name in names if _NUMBER.fullmatch(name)), default=0)

    def _remove_others(self) -> None:
        """Remove what earlier holders, and processes that were killed, have left."""
        for path in self._folder.iterdir():
            earlier = _NUMBER.fullmatch(path.name) and int(path.name) < self._number
            if earlier or _UNFINISHED.fullmatch(path.name):
                with suppress(OSError):  # it may belong to another user
                    path.unlink()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot use the lease in {self._folder}: {error.strerror or error}"
            ) from error


def _state(file: Path) -> LeaseState:
    """Read the file of a holder. It is opened anew, by which NFS asks the server what it is now.

    Raises:
        OSError: it cannot be read, or is no file: a study may come from a stranger.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        content = opened.read(_MOST_BYTES) if stat.S_ISREG(status.st_mode) else b"-"
    return LeaseState(file.name, status.st_mtime_ns, _holder(content), free=not content)


def _link(content: Path, target: Path) -> bool:
    """Give a file a second name; return False where another file has it, or the first is gone."""
    try:
        os.link(content, target)
    except (FileExistsError, FileNotFoundError):
        # NFS may repeat a request whose reply was lost.
        with suppress(FileNotFoundError):
            return content.samefile(target)
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        return _copy(content, target)
    return True


def _copy(content: Path, target: Path) -> bool:
    """Copy a file where there are no hard links.

    For a moment it is empty, which reads as free: whoever takes it then has a higher number.
    """
    with suppress(FileExistsError), target.open("xb") as file:
        file.write(content.read_bytes())
        return True
    return False


def _holder(content: bytes) -> Holder | None:
    """Return the holder in a file; None where the content is not that of a lease."""
    try:
        data: Any = parse_json(content)
        types = {field.name: int if field.type == "int" else str for field in fields(Holder)}
        if {name: type(value) for name, value in data.items()} != types:
            return None
        holder = Holder(**data)
    except (UnreadableError, AttributeError):
        return None
    return holder if str(holder).isprintable() else None
