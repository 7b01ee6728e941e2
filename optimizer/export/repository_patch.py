"""The configuration of a study as a patch of the model repository that it began with.

`patch -p1` and `git apply` take it, in the folder of the repository. It has no `diff --git` lines:
git would read their paths from the root of the working tree, wherever the repository lies in it.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.export.bundle.config_fields import FieldChange, field_changes
from optimizer.export.bundle.manifest import Manifest
from optimizer.export.bundle.study_bundle import measurement_values
from optimizer.export.rendering import render

_NO_FILE = "/dev/null"
_QUOTED = re.compile(r'["\\\x00-\x1f\x7f]')
_ESCAPES = {"\n": "\\n", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


@dataclass(frozen=True)
class PatchedFile:
    """A config.pbtxt before and after the patch.

    Attributes:
        path: inside the repository.
        before: None where the model has no config.pbtxt.
        completed: the configuration as deployed, where `before` leaves fields of it to the server.
    """

    path: PurePosixPath
    before: str | None
    after: str
    completed: str | None = None

    @property
    def base(self) -> str:
        """The sha256 of the file that the patch applies to."""
        return "no file" if self.before is None else f"sha256 {sha256(self.before)}"

    @property
    def fields(self) -> list[FieldChange]:
        """The fields that change from the configuration as deployed."""
        texts = (self.completed or self.before or "", self.after)
        return field_changes(*(text_format.Parse(text, ModelConfig()) for text in texts))


def sha256(text: str) -> str:
    """Return the digest of a file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def patch_text(manifest: Manifest, files: Sequence[PatchedFile]) -> str:
    """Return a patch of all files, below a header with what was measured and what changes.

    Write it with its line ends as they are: those of the patched files are among them.
    """
    header = render("patch/header.txt.jinja", {**measurement_values(manifest), "files": files})
    return with_header(header, files)


def with_header(header: str, files: Sequence[PatchedFile]) -> str:
    """Return a patch of all files below lines of text."""
    return "".join(
        [
            *(f"# {line}".rstrip() + "\n" for line in header.splitlines()),
            *(line for file in files for line in _diff(file)),
        ]
    )


def _diff(file: PatchedFile) -> Iterator[str]:
    old = _NO_FILE if file.before is None else _name(f"a/{file.path}")
    # Only a line feed ends a line of a patch, whatever else Python takes for the end of one.
    before, after = (list(io.StringIO(text)) for text in (file.before or "", file.after))
    for line in difflib.unified_diff(before, after, old, _name(f"b/{file.path}")):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _name(path: str) -> str:
    """Write a path as git and GNU patch read it: a tab ends one that contains blanks."""
    if _QUOTED.search(path):
        return f'"{_QUOTED.sub(_escaped, path)}"'
    return f"{path}\t" if " " in path else path


def _escaped(match: re.Match[str]) -> str:
    char = match.group()
    return _ESCAPES.get(char, f"\\{ord(char):03o}")
