"""The consoles that commands write to, and what they do when their output pipe is closed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from optimizer.cli.interruption import discard_output, is_closed_output
from optimizer.files.untrusted import printable


class OutputConsole(Console):
    """Standard output of a command that ends when its output pipe is closed.

    Texts are printed as they are: what looks like markup comes from a file, and is none.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__(file=file, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as Rich does, with the control characters of texts escaped."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield segment._replace(text=printable(segment.text))

    def on_broken_pipe(self) -> None:
        """Raise an error that ends the command; Rich would exit with 1, which means another thing.

        Raises:
            BrokenPipeError: always.
        """
        # Without the errno, by which click would know it and exit with 1 as well.
        raise BrokenPipeError("output pipe closed")


class ResilientConsole(OutputConsole):
    """Standard output of a search, which continues when its output pipe is closed.

    The log of the run has what is not printed: `optimizer run | head` ends no search.
    """

    def __init__(self) -> None:
        super().__init__(cast("IO[str]", _ResilientOutput(sys.stdout)))


class _ResilientOutput:
    """A text file that drops what is written after its pipe was closed."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        if not is_closed_output(error):
            raise error
        discard_output()
