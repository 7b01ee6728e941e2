"""The syntax of a config.pbtxt: where each field and each value stands in the text.

protobuf's parser drops these positions, and its tokenizer keeps them in private attributes, so the
text is read a second time here. What the text means is left to protobuf alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?>(?:\s|\#[^\n]*)*)                # white space and comments, then a token:
    (?P<token> [A-Za-z_][0-9A-Za-z_+-]*     # an identifier
             | (?:[0-9+-]|\.[0-9])[0-9A-Za-z_.+-]*   # a number
             | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*'
             | . )""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "<": ">", "[": "]"}


@dataclass(frozen=True)
class MessageSpan:
    """The inside of a message's braces, or the whole text.

    Attributes:
        start: index of the first character.
        end: index after the last one.
    """

    start: int
    end: int
    fields: tuple[FieldSpan, ...]


@dataclass(frozen=True)
class ValueSpan:
    """One value of a field: a scalar, adjacent strings, or a message with its braces.

    Attributes:
        message: the inside of the braces; None for a scalar.
        comma: index of the comma that follows it in a list; None after the last value.
    """

    start: int
    end: int
    message: MessageSpan | None
    comma: int | None = None


@dataclass(frozen=True)
class FieldSpan:
    """One field with its name, its values, and the separator after it.

    Attributes:
        values: one, or those of the list.
        is_list: whether the values are in brackets.
    """

    name: str
    start: int
    end: int
    values: tuple[ValueSpan, ...]
    is_list: bool


def read_syntax(text: str) -> MessageSpan:
    """Return the fields of a text that protobuf's parser has accepted."""
    return _Reader(text).message()


class _Reader:
    """Reads tokens one by one; `_token` is the next one, and empty at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        self._token = match["token"] if match is not None else ""
        self._start = match.start("token") if match is not None else len(self._text)

    def _take(self) -> str:
        token = self._token
        self._end = self._start + len(token)
        self._advance()
        return token

    def _take_any(self, tokens: str) -> bool:
        if self._token and self._token in tokens:
            self._take()
            return True
        return False

    def message(self, closing: str = "") -> MessageSpan:
        """Read fields up to `closing`, which is read as well."""
        start, fields = self._end, []
        while self._token != closing:
            fields.append(self._field())
        span = MessageSpan(start, self._start, tuple(fields))
        self._take()
        return span

    def _field(self) -> FieldSpan:
        start, name = self._start, self._take()
        self._take_any(":")
        is_list = self._take_any("[")
        values = tuple(self._list()) if is_list else (self._value(),)
        self._take_any(",;")
        return FieldSpan(name, start, self._end, values, is_list)

    def _list(self) -> Iterator[ValueSpan]:
        while not self._take_any("]"):
            value = self._value()
            comma = self._end - 1 if self._take_any(",") else None
            yield ValueSpan(value.start, value.end, value.message, comma)

    def _value(self) -> ValueSpan:
        start, first = self._start, self._take()
        message = self.message(_CLOSING[first]) if first in _CLOSING else None
        while first[0] in "\"'" and self._token[:1] in ("'", '"'):
            self._take()
        return ValueSpan(start, self._end, message)
