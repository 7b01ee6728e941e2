"""Random texts that a regular expression matches.

A pattern may have characters, `.`, classes such as `[A-Z_]` and `[^,]`, escapes such as those of
digits and words, groups, `|`, and the repetitions `?`, `*`, `+`, `{3}` and `{2,5}`. They mean what
they mean in Python; each choice is uniform.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

LONGEST_TEXT = 100_000
"""Longest text that a pattern may give, in characters."""

_MOST_OPEN = 10
"""Repetitions beyond the least where a pattern has no upper bound."""

_MOST_GROUPS = 20
_PRINTABLE = "".join(map(chr, range(32, 127)))
_CLASSES: Mapping[str, str] = {
    "d": string.digits,
    "w": f"{string.ascii_letters}{string.digits}_",
    "s": " \t",
}
_CONTROLS: Mapping[str, str] = {"n": "\n", "t": "\t", "r": "\r"}


_Drawn = tuple[str, bytes]
"""A piece of a text, and all those of its length in UTF-8 that the pattern allows in its place, one
after the other; none where there is no other."""


class DrawnText(bytes):
    """A text that a pattern matches, in UTF-8.

    Attributes:
        choices: pieces that others may replace: offset and length in bytes, and all values that
            the piece may have, one after the other.
    """

    choices: tuple[tuple[int, int, bytes], ...]

    @classmethod
    def of(cls, drawn: Sequence[_Drawn]) -> DrawnText:
        """Return the text of drawn pieces."""
        pieces = [piece.encode() for piece, _ in drawn]
        text = cls(b"".join(pieces))
        offsets = accumulate(map(len, pieces), initial=0)
        text.choices = tuple(
            (offset, len(piece), values)
            for offset, piece, (_, values) in zip(offsets, pieces, drawn, strict=False)
            if values
        )
        return text


class TextPattern(Protocol):
    """A part of a pattern."""

    @property
    def longest(self) -> int:
        """Length of its longest text in characters."""
        ...

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        """Draw the pieces of a text."""
        ...


@dataclass(frozen=True)
class _Characters:
    """One of several characters."""

    choices: str
    longest: int = 1

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        replaceable = len(self.choices) > 1 and self.choices.isascii()
        values = self.choices.encode() if replaceable else b""
        yield self.choices[rng.integers(len(self.choices))], values


@dataclass(frozen=True)
class _Words:
    """One of several texts, as of a vocabulary."""

    words: tuple[str, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.words))

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        word = self.words[rng.integers(len(self.words))]
        yield word, self._of_length[len(word.encode())]

    @cached_property
    def _of_length(self) -> Mapping[int, bytes]:
        """The different words of each length in bytes; none where there is one alone."""
        words: defaultdict[int, list[bytes]] = defaultdict(list)
        for word in dict.fromkeys(self.words):
            words[len(word.encode())].append(word.encode())
        return {n: b"".join(own) if n and len(own) > 1 else b"" for n, own in words.items()}


@dataclass(frozen=True)
class _Concatenation:
    parts: tuple[TextPattern, ...]

    @property
    def longest(self) -> int:
        return sum(part.longest for part in self.parts)

    @property
    def literal(self) -> str | None:
        """The only text that it matches; None where it may match several."""
        own = [part.choices for part in self.parts if isinstance(part, _Characters)]
        single = len(own) == len(self.parts) and all(len(choices) == 1 for choices in own)
        return "".join(own) if single else None

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        for part in self.parts:
            yield from part.draw(rng)


@dataclass(frozen=True)
class _Alternatives:
    parts: tuple[TextPattern, ...]

    @property
    def longest(self) -> int:
        return max(part.longest for part in self.parts)

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        yield from self.parts[rng.integers(len(self.parts))].draw(rng)


@dataclass(frozen=True)
class _Repetition:
    part: TextPattern
    least: int
    most: int

    @property
    def longest(self) -> int:
        return self.most * self.part.longest

    def draw(self, rng: np.random.Generator) -> Iterator[_Drawn]:
        for _ in range(int(rng.integers(self.least, self.most, endpoint=True))):
            yield from self.part.draw(rng)


@lru_cache(maxsize=64)
def text_pattern(pattern: str) -> TextPattern:
    """Return a regular expression as the texts that it matches.

    Raises:
        ValueError: with the rule that it breaks.
    """
    reader = _PatternReader(pattern)
    parsed = reader.alternatives()
    if not reader.at_end:
        raise ValueError(f"has a ')' without '(' at character {reader.position + 1}")
    if parsed.longest > LONGEST_TEXT:
        raise ValueError(f"must give texts of at most {LONGEST_TEXT:,} characters")
    return parsed


class _PatternReader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.position = 0
        self._open_groups = 0

    @property
    def at_end(self) -> bool:
        return self.position == len(self._pattern)

    def alternatives(self) -> TextPattern:
        parts = [self._sequence()]
        while self._take("|"):
            parts.append(self._sequence())
        if len(parts) == 1:
            return parts[0]
        words = [text for part in parts if (text := part.literal) is not None]
        return _Words(tuple(words)) if len(words) == len(parts) else _Alternatives(tuple(parts))

    def _sequence(self) -> _Concatenation:
        parts: list[TextPattern] = []
        while not self.at_end and self._pattern[self.position] not in "|)":
            parts.append(self._repeated(self._atom()))
        return _Concatenation(tuple(parts))

    def _atom(self) -> TextPattern:
        match self._next():
            case "(":
                return self._group()
            case "[":
                return _Characters(self._class())
            case "\\":
                return _Characters(self._escaped())
            case ".":
                return _Characters(_PRINTABLE)
            case char if char in "?*+{^$":
                raise self._wrong(f"has {char!r} where a character must stand (write \\{char})")
            case char:
                return _Characters(char)

    def _group(self) -> TextPattern:
        if self._take("?") and not self._take(":"):
            raise self._wrong("must have no group that begins with '(?' but '(?:'")
        self._open_groups += 1
        if self._open_groups > _MOST_GROUPS:
            raise self._wrong(f"must have at most {_MOST_GROUPS} groups within each other")
        inner = self.alternatives()
        self._require(")")
        self._open_groups -= 1
        return inner

    def _repeated(self, part: TextPattern) -> TextPattern:
        bounds = self._bounds()
        if bounds is None:
            return part
        if not self.at_end and self._pattern[self.position] in "?*+{":
            raise self._wrong("must have one repetition after a character or group")
        return _Repetition(part, *bounds)

    def _bounds(self) -> tuple[int, int] | None:
        if self._take("?"):
            return 0, 1
        if self._take("*"):
            return 0, _MOST_OPEN
        if self._take("+"):
            return 1, 1 + _MOST_OPEN
        if not self._take("{"):
            return None
        least = self._number()
        most = least
        if self._take(","):
            open_ended = not self.at_end and self._pattern[self.position] == "}"
            most = least + _MOST_OPEN if open_ended else self._number()
        self._require("}")
        if most < least:
            raise self._wrong(f"must repeat from few to many times, got {{{least},{most}}}")
        return least, most

    def _number(self) -> int:
        start = self.position
        while not self.at_end and self._pattern[self.position] in string.digits:
            self.position += 1
        digits = self._pattern[start : self.position]
        if not 1 <= len(digits) <= len(str(LONGEST_TEXT)):
            raise self._wrong(f"must have a number from 0 to {LONGEST_TEXT:,} within braces")
        return int(digits)

    def _class(self) -> str:
        excluded = self._take("^")
        chars: dict[str, None] = {}
        first = True
        while first or not self._take("]"):
            first = False
            begin = self._class_part()
            if len(begin) == 1 and self._pattern[self.position :][:1] == "-" and (
                self._pattern[self.position + 1 :][:1] not in ("]", "")
            ):  # fmt: skip
                self._require("-")
                end = self._class_part()
                if len(end) != 1 or end < begin:
                    raise self._wrong("must have ranges from a lower to a higher character")
                begin = "".join(map(chr, range(ord(begin), ord(end) + 1)))
            chars |= dict.fromkeys(begin)
        wanted = [c for c in _PRINTABLE if c not in chars] if excluded else list(chars)
        if not wanted:
            raise self._wrong("must leave a character in every class")
        return "".join(wanted)

    def _class_part(self) -> str:
        char = self._next()
        return self._escaped() if char == "\\" else char

    def _escaped(self) -> str:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char.lower() in _CLASSES:
            return "".join(c for c in _PRINTABLE if c not in _CLASSES[char.lower()])
        if char.isalnum() and char not in _CONTROLS:
            raise self._wrong(f"must not have \\{char}, which names no list of characters")
        return _CONTROLS.get(char, char)

    def _next(self) -> str:
        if self.at_end:
            raise self._wrong("must not end within a group, a class or an escape")
        self.position += 1
        return self._pattern[self.position - 1]

    def _take(self, char: str) -> bool:
        taken = not self.at_end and self._pattern[self.position] == char
        self.position += taken
        return taken

    def _require(self, char: str) -> None:
        if not self._take(char):
            raise self._wrong(f"needs {char!r}")

    def _wrong(self, rule: str) -> ValueError:
        return ValueError(f"{rule}, at character {self.position}")


def draw_texts(pattern: str, count: int, rng: np.random.Generator) -> Sequence[DrawnText]:
    """Draw texts that a pattern matches. Raises ValueError as `text_pattern`."""
    parsed = text_pattern(pattern)
    return [DrawnText.of(tuple(parsed.draw(rng))) for _ in range(count)]
