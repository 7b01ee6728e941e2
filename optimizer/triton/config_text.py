"""A config.pbtxt as somebody wrote it, changed to another configuration in as few bytes as needed.

Comments, order, indentation and separators of everything that does not change are kept.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Hashable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import ModelConfig

from optimizer.triton.config_syntax import FieldSpan, MessageSpan, ValueSpan, read_syntax

_REST_OF_LINE = re.compile(r"[^\S\n]*(?:#[^\n]*)?(?:\n|\Z)")
_BLANKS = re.compile(r"[ \t]*")
_TOKEN_FOLLOWS = re.compile(r"[^\s>\]},;#]")


def edited(text: str, target: ModelConfig) -> str:
    """Return `text` with only those fields changed in which it differs from `target`.

    A changed value is replaced, a new field follows its siblings in their indentation, and a
    removed field goes with its line. Pass the text with the line ends of the file.

    Raises:
        ValueError: when `text` is no ModelConfig; the message names the line.
    """
    try:
        text_format.Parse(text, ModelConfig())
    except (text_format.ParseError, RecursionError) as error:
        raise ValueError(f"no Triton model configuration: {error}") from error
    span = read_syntax(text)
    return _applied(text, 0, _TextEditor(text, span).message_edits(span, target))


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str = ""


def _applied(text: str, offset: int, edits: Sequence[_Edit]) -> str:
    """Return `text` after the edits, whose positions count from `-offset`.

    Removed ranges may overlap: both of two neighbours may remove the blanks between them.
    """
    parts, position = [], 0
    for edit in sorted(edits, key=lambda each: (each.start, each.end)):
        start = max(edit.start - offset, position)
        parts += [text[position:start], edit.text]
        position = max(edit.end - offset, position)
    return "".join([*parts, text[position:]])


@dataclass(frozen=True)
class _Occurrence:
    """One element of a field in the text, with its content."""

    field: FieldSpan
    value: ValueSpan
    element: Any


class _TextEditor:
    """Finds the edits of one text."""

    def __init__(self, text: str, span: MessageSpan) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._unit = next(self._nested_indents(span, ""), "  ")

    def message_edits(self, span: MessageSpan, target: Message) -> list[_Edit]:
        """Return the edits after which the text in `span` is `target`, proved by parsing it."""
        text = self._text[span.start : span.end]
        before = text_format.Parse(text, type(target)())
        edits = [
            edit
            for name in target.DESCRIPTOR.fields_by_name
            if not _same(_part(before, name), _part(target, name))
            for edit in self._field_edits(span, name, target)
        ]
        if not _parses_to(_applied(text, span.start, edits), target):
            return [_Edit(span.start, span.end, self._whole(span, target))]
        return edits

    def _field_edits(self, span: MessageSpan, name: str, target: Message) -> Iterator[_Edit]:
        occurrences = list(self._occurrences(span, name, target))
        elements = _wanted(name, target, [each.element for each in occurrences])
        matcher = difflib.SequenceMatcher(
            None,
            [_key(each.element) for each in occurrences],
            [_key(each) for each in elements],
            autojunk=False,
        )
        removed: list[_Occurrence] = []
        for _, i, i_end, j, j_end in matcher.get_opcodes():
            pairs = min(i_end - i, j_end - j)
            for occurrence, element in zip(occurrences[i:i_end], elements[j:j_end], strict=False):
                yield from self._changed(target, name, occurrence, element)
            removed += occurrences[i + pairs : i_end]
            if added := elements[j + pairs : j_end]:
                yield from self._added(span, occurrences, i + pairs, _with(name, target, added))
        yield from self._removed(removed)

    def _occurrences(self, span: MessageSpan, name: str, target: Message) -> Iterator[_Occurrence]:
        for each in span.fields:
            for value in each.values if each.name == name else ():
                text = f"{name}: {self._text[value.start : value.end]}"
                [element] = _elements(name, text_format.Parse(text, type(target)()))
                yield _Occurrence(each, value, element)

    def _changed(
        self, target: Message, name: str, occurrence: _Occurrence, element: Any
    ) -> Iterator[_Edit]:
        value = occurrence.value
        if value.message is None:
            text = _value_text(target, name, element)
            if text != _value_text(target, name, occurrence.element):
                yield _Edit(value.start, value.end, text)
        elif not _same(occurrence.element, element):
            yield from self.message_edits(value.message, element)

    def _removed(self, removed: Sequence[_Occurrence]) -> Iterator[_Edit]:
        gone = {each.value for each in removed}
        for field in {each.field for each in removed}:
            kept = [value for value in field.values if value not in gone]
            if not kept:
                yield self._without(field.start, field.end)
                continue
            for value in gone.intersection(field.values):
                yield self._without(value.start, _after_comma(value))
            last = kept[-1]
            if last.comma is not None and last != field.values[-1] and field.values[-1] in gone:
                yield _Edit(last.comma, last.comma + 1)

    def _without(self, start: int, end: int) -> _Edit:
        """Remove a range with its line, or from its line where it shares that."""
        line, rest = self._line_start(start), _REST_OF_LINE.match(self._text, end)
        first = not self._text[line:start].strip()
        if first and rest:
            return _Edit(line, rest.end())
        if first:
            blanks = _BLANKS.match(self._text, end)
            return _Edit(start, blanks.end() if blanks else end)
        if _TOKEN_FOLLOWS.match(self._text, end):
            return _Edit(start, end)
        return _Edit(line + len(self._text[line:start].rstrip(" \t")), end)

    def _added(
        self, span: MessageSpan, occurrences: Sequence[_Occurrence], index: int, added: Message
    ) -> Iterator[_Edit]:
        """Insert elements before the occurrence at `index`, in the style of their neighbours."""
        if not occurrences:
            yield self._at_end(span, added)
        elif index == 0:
            yield self._before(occurrences[0], added)
        else:
            previous = occurrences[index - 1]
            if previous.field.is_list:
                yield from self._after_value(previous.value, added)
            else:
                yield self._after(previous.field.start, previous.field.end, added)

    def _at_end(self, span: MessageSpan, added: Message) -> _Edit:
        if span.start == 0:  # the file
            lines, complete = self._lines(added, ""), self._is_first(span.end)
            text = lines + self._newline if complete else self._newline + lines
            return _Edit(span.end, span.end, text)
        if span.fields:
            return self._after(span.fields[-1].start, span.fields[-1].end, added)
        line = self._line_start(span.end)
        if line <= span.start:
            blank = "" if span.end > span.start else " "
            return _Edit(span.end, span.end, f"{blank}{_one_line(added)} ")
        indent = self._indent(span.end) + self._unit
        return _Edit(line, line, self._lines(added, indent) + self._newline)

    def _after(self, start: int, end: int, added: Message) -> _Edit:
        rest = _REST_OF_LINE.match(self._text, end)
        if rest is None:
            follows = " " if _TOKEN_FOLLOWS.match(self._text, end) else ""
            return _Edit(end, end, f" {_one_line(added)}{follows}")
        lines = self._lines(added, self._indent(start))
        if rest.group().endswith("\n"):
            return _Edit(rest.end(), rest.end(), lines + self._newline)
        return _Edit(rest.end(), rest.end(), self._newline + lines)

    def _after_value(self, value: ValueSpan, added: Message) -> Iterator[_Edit]:
        rest = _REST_OF_LINE.match(self._text, _after_comma(value))
        if rest is None or not self._is_first(value.start):
            texts = "".join(f", {text}" for text in self._value_texts(added, None))
            yield _Edit(value.end, value.end, texts)
            return
        indent = self._indent(value.start)
        texts = f",{self._newline}".join(indent + text for text in self._value_texts(added, indent))
        if value.comma is None:
            yield _Edit(value.end, value.end, ",")
        comma = "," if value.comma is not None else ""
        yield _Edit(rest.end(), rest.end(), texts + comma + self._newline)

    def _before(self, occurrence: _Occurrence, added: Message) -> _Edit:
        is_list = occurrence.field.is_list
        start = occurrence.value.start if is_list else occurrence.field.start
        indent = self._indent(start) if self._is_first(start) else None
        separator = f"{self._newline}{indent}" if indent is not None else " "
        if is_list:
            texts = self._value_texts(added, indent)
            return _Edit(start, start, "".join(f"{text},{separator}" for text in texts))
        text = self._lines(added, indent)[len(indent) :] if indent is not None else _one_line(added)
        return _Edit(start, start, text + separator)

    def _whole(self, span: MessageSpan, target: Message) -> str:
        line = self._line_start(span.end)
        if line <= span.start and span.start > 0:
            return f" {_one_line(target)} "
        if span.start == 0:
            return self._lines(target, "") + self._newline
        indent = self._indent(span.end)
        lines = self._lines(target, indent + self._unit)
        return self._newline + lines + self._newline + indent

    def _lines(self, message: Message, indent: str) -> str:
        """Print fields in lines of their own, without the last line end."""
        printed = text_format.MessageToString(
            message, as_utf8=True, use_short_repeated_primitives=True
        )
        lines = (
            indent + self._unit * ((len(line) - len(line.lstrip(" "))) // 2) + line.lstrip(" ")
            for line in printed.removesuffix("\n").split("\n")
        )
        return self._newline.join(lines)

    def _value_texts(self, added: Message, indent: str | None) -> list[str]:
        """Print the values of the only field, in one line or in lines that begin with `indent`."""
        [(field, _)] = added.ListFields()
        name = field.name
        parts = [_with(name, added, [each]) for each in _elements(name, added)]
        if indent is None:
            return [_without_name(name, _one_line(part)) for part in parts]
        return [_without_name(name, self._lines(part, indent)[len(indent) :]) for part in parts]

    def _nested_indents(self, span: MessageSpan, outer: str) -> Iterator[str]:
        """Yield by how much fields in lines of their own are indented in their messages."""
        for field in span.fields:
            indent = self._indent(field.start)
            if self._is_first(field.start) and indent != outer and indent.startswith(outer):
                yield indent.removeprefix(outer)
            for value in field.values:
                if value.message is not None:
                    yield from self._nested_indents(value.message, self._indent(value.start))

    def _line_start(self, position: int) -> int:
        return self._text.rfind("\n", 0, position) + 1

    def _is_first(self, position: int) -> bool:
        return not self._text[self._line_start(position) : position].strip()

    def _indent(self, position: int) -> str:
        match = _BLANKS.match(self._text, self._line_start(position))
        return match.group() if match else ""


def _after_comma(value: ValueSpan) -> int:
    return value.end if value.comma is None else value.comma + 1


def _parses_to(text: str, target: Message) -> bool:
    try:
        return _same(text_format.Parse(text, type(target)()), target)
    except text_format.ParseError:
        return False


def _same(one: Message, other: Message) -> bool:
    """Compare two messages; NaN equals itself."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def _part(message: Message, name: str) -> Message:
    """Return a copy with one field only."""
    part = type(message)()
    part.CopyFrom(message)
    for other in message.DESCRIPTOR.fields_by_name:
        if other != name:
            part.ClearField(other)
    return part


def _with(name: str, message: Message, elements: Sequence[Any]) -> Message:
    """Return a message of the same type with one field only, which has `elements`."""
    part = type(message)()
    content = getattr(part, name)
    if isinstance(content, Mapping):
        for entry in elements:
            part.MergeFrom(type(message)(**{name: {entry.key: entry.value}}))
    elif isinstance(content, MutableSequence):
        content.extend(elements)
    else:
        part.MergeFrom(type(message)(**{name: elements[0]}))
    return part


def _elements(name: str, message: Message) -> list[Any]:
    """Return the elements of a field: one if it is not repeated, and the entries of a map."""
    content: Any = getattr(message, name)
    if isinstance(content, Mapping):
        entry: Any = content.GetEntryClass()  # type: ignore[attr-defined]
        return [entry(key=key, value=content[key]) for key in sorted(content)]
    return list(content) if isinstance(content, MutableSequence) else [content]


def _wanted(name: str, target: Message, in_text: Sequence[Any]) -> list[Any]:
    """Return the elements that the text should have, those of a map in the order of the text."""
    content = getattr(target, name)
    elements = _elements(name, target)
    if isinstance(content, Mapping):
        order = {each.key: position for position, each in enumerate(in_text)}
        return sorted(elements, key=lambda each: order.get(each.key, len(order)))
    if isinstance(content, MutableSequence):
        return elements
    is_set = any(field.name == name for field, _ in target.ListFields())
    # A scalar without presence that becomes its default is written out where it stands.
    stays = in_text and not target.DESCRIPTOR.fields_by_name[name].has_presence
    return elements if is_set or stays else []


def _key(element: Any) -> Hashable:
    """Return what identifies an element among its siblings: its name if it has one."""
    if not isinstance(element, Message):
        return str(element)
    names = (getattr(element, name, "") for name in ("key", "name"))
    return next(filter(None, names), element.SerializeToString(deterministic=True))


def _value_text(message: Message, name: str, value: Any) -> str:
    out, field = io.StringIO(), message.DESCRIPTOR.fields_by_name[name]
    text_format.PrintFieldValue(field, value, out, as_utf8=True, as_one_line=True)  # type: ignore[arg-type]
    return out.getvalue()


def _one_line(message: Message) -> str:
    return text_format.MessageToString(
        message, as_utf8=True, as_one_line=True, use_short_repeated_primitives=True
    )


def _without_name(name: str, text: str) -> str:
    """Remove the name from a printed field, and the brackets from a printed list of one scalar."""
    value = text.removeprefix(name).lstrip(": ")
    return value.removeprefix("[").removesuffix("]")
