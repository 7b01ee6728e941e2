"""The console that commands write to, and what becomes of it when nobody reads it any more."""

from __future__ import annotations

import sys
from typing import IO, Any, cast

from rich.console import Console

from optimizer.cli.no_reader import discard_output, has_no_reader


class OutputConsole(Console):
    """Standard output; a command whose output nobody reads any more is interrupted.

    Texts are printed as they are: what looks like markup comes from a file, and is none.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Rich would exit with 1, "nothing was found"."""
        # Without the errno, by which click would know it and exit with 1 as well.
        raise BrokenPipeError("nobody reads the output any more")


class LastingConsole(Console):
    """Standard output of a search, which goes on when nobody reads it any more.

    What it would have said is in its log: `optimizer run | head` ends no search.
    """

    def __init__(self) -> None:
        super().__init__(
            file=cast("IO[str]", _LastingOutput(sys.stdout)), markup=False, emoji=False
        )


class _LastingOutput:
    """A text file that takes whatever is written, with or without a reader."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not has_no_reader(error):
            raise error
        discard_output()
