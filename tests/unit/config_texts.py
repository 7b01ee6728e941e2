"""Hypothesis strategies: Triton configurations, as text in the styles that people write."""

from __future__ import annotations

import io
from collections.abc import MutableMapping, MutableSequence
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

Draw = Any
_STRINGS = st.text(max_size=6)
_NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
    "bool": st.booleans(),
    "string": _STRINGS,
}


def _scalar(draw: Draw, field: Any) -> Any:
    if field.enum_type is not None:
        return draw(st.sampled_from([value.number for value in field.enum_type.values] + [77]))
    kinds = {
        1: "double",
        5: "int32",
        3: "int64",
        13: "uint32",
        4: "uint64",
        2: "float",
        8: "bool",
        9: "string",
    }
    return draw(_NUMBERS[kinds[field.type]])


def fill(draw: Draw, message: Message, depth: int) -> None:
    """Draw some fields of a message, and of the messages in it."""
    fields = list(message.DESCRIPTOR.fields)
    for field in (
        draw(st.lists(st.sampled_from(fields), max_size=4, unique_by=id)) if fields else ()
    ):
        change(draw, message, field, depth)


def change(draw: Draw, message: Message, field: Any, depth: int) -> None:
    """Draw the content of one field anew, or change what it has a little."""
    content: Any = getattr(message, field.name)
    if isinstance(content, MutableMapping):
        key_field = field.message_type.fields_by_name["key"]
        value_field = field.message_type.fields_by_name["value"]
        for key in list(content):
            if draw(st.integers(0, 3)) == 0:
                del content[key]
        for _ in range(draw(st.integers(0, 2))):
            key = _scalar(draw, key_field)
            if value_field.message_type is not None:
                fill(draw, content[key], depth - 1)
            else:
                content[key] = _scalar(draw, value_field)
    elif isinstance(content, MutableSequence):
        _change_list(draw, content, field, depth)
    elif field.message_type is not None:
        if draw(st.booleans()):
            message.ClearField(field.name)
        elif depth:
            content.SetInParent()
            fill(draw, content, depth - 1)
    else:
        setattr(message, field.name, _scalar(draw, field))


def _change_list(draw: Draw, content: Any, field: Any, depth: int) -> None:
    for index in reversed(range(len(content))):
        if draw(st.integers(0, 3)) == 0:
            del content[index]
        elif field.message_type is not None and draw(st.integers(0, 2)) == 0:
            fill(draw, content[index], depth - 1)
    for _ in range(draw(st.integers(0, 2))):
        if field.message_type is None:
            content.insert(draw(st.integers(0, len(content))), _scalar(draw, field))
        else:
            added = content.add()
            fill(draw, added, depth - 1)
            content.insert(draw(st.integers(0, len(content) - 1)), content.pop())


@st.composite
def configs(draw: Draw) -> ModelConfig:
    config = ModelConfig()
    fill(draw, config, 4)
    return config


@st.composite
def changed(draw: Draw, config: ModelConfig) -> ModelConfig:
    target = ModelConfig()
    target.CopyFrom(config)
    fill(draw, target, 3)
    return target


class Writer:
    """Writes messages as text, in a style that is drawn for every token."""

    def __init__(self, draw: Draw, newline: str, unit: str) -> None:
        self._draw, self._newline, self._unit = draw, newline, unit

    def _pick(self, *choices: str) -> str:
        return self._draw(st.sampled_from(choices))  # type: ignore[no-any-return]

    def body(self, message: Message, indent: str, one_line: bool) -> str:
        statements = [
            statement
            for field, content in message.ListFields()
            for statement in self._statements(field, content, indent, one_line)
        ]
        return "".join(self._framed(each, indent, one_line) for each in statements)

    def _framed(self, statement: str, indent: str, one_line: bool) -> str:
        if one_line:
            return f" {statement}{self._pick('', ';', ' ,', ' ')} "
        above = self._pick("", "", f"{indent}# {{ above: 1{self._newline}", self._newline)
        behind = self._pick("", "", ' # it\'s "here"', "  ", ";", ", # list [")
        end = self._pick(self._newline, self._newline, self._newline, " ")
        if end == " " and "#" in behind:
            end = self._newline
        return f"{above}{indent}{statement}{behind}{end}"

    def _statements(self, field: Any, content: Any, indent: str, one_line: bool) -> list[str]:
        if isinstance(content, MutableMapping):
            entry = content.GetEntryClass()  # type: ignore[attr-defined]
            elements = [entry(key=key, value=content[key]) for key in content]
            if elements and self._draw(st.integers(0, 5)) == 0:
                elements.insert(0, entry(key=elements[0].key))
        else:
            elements = list(content) if isinstance(content, MutableSequence) else [content]
        deeper = indent + self._unit
        if isinstance(content, MutableSequence) and self._draw(st.booleans()):
            values = [self._value(field, each, deeper, one_line) for each in elements]
            if one_line or self._draw(st.booleans()):
                comma = self._pick(",", ", ", " , ")
                return [f"{field.name}{self._pick(':', ': ')}[ {comma.join(values)} ]"]
            note = self._pick("", " # one, two")
            lines = f",{note}{self._newline}{deeper}".join(values)
            return [f"{field.name}: [{self._newline}{deeper}{lines}{self._newline}{indent}]"]
        colon = (
            self._pick(":", ": ", " : ")
            if field.message_type is None
            else self._pick(" ", ": ", ":")
        )
        return [field.name + colon + self._value(field, e, indent, one_line) for e in elements]

    def _value(self, field: Any, value: Any, indent: str, one_line: bool) -> str:
        if not isinstance(value, Message):
            return self._scalar(field, value)
        opening = self._pick("{", "{", "<")
        closing = "}" if opening == "{" else ">"
        if one_line or self._draw(st.booleans()):
            return opening + self.body(value, indent, True) + closing
        inside = self.body(value, indent + self._unit, False)
        return f"{opening}{self._newline}{inside}{self._newline}{indent}{closing}"

    def _scalar(self, field: Any, value: Any) -> str:
        if isinstance(value, str):
            return self._string(value)
        if field.enum_type is not None and self._draw(st.booleans()):
            return str(value)
        out = io.StringIO()
        text_format.PrintFieldValue(field, value, out)
        return out.getvalue()

    def _string(self, value: str) -> str:
        cut = self._draw(st.integers(0, len(value)))
        parts = [value[:cut], value[cut:]] if self._draw(st.booleans()) else [value]
        quoted = []
        for part in parts:
            quote = self._pick('"', "'")
            escaped = "".join(
                char
                if char.isprintable() and char not in "\\\"'"
                else "".join(f"\\{byte:03o}" for byte in char.encode())
                for char in part
            )
            quoted.append(quote + escaped + quote)
        return self._pick(" ", f"{self._newline}  # joined{self._newline} ").join(quoted)


@st.composite
def texts_of(draw: Draw, config: ModelConfig) -> str:
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    writer = Writer(draw, newline, draw(st.sampled_from(["", "  ", "    ", "\t"])))
    text = writer.body(config, "", draw(st.integers(0, 4)) == 0)
    return text.removesuffix("\n").removesuffix("\r") if draw(st.booleans()) else text
