"""Conditions of space files, such as "batching or cores > 1". Pure.

A condition may come from an untrusted file, so its text is never executed. It is parsed, and only
the operations listed here are evaluated. Bounds on length and depth limit the work.
"""

from __future__ import annotations

import ast
import io
import math
import operator
import re
import tokenize
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from optimizer.configuration.columns import Columns, Mask
from optimizer.configuration.named_parameters import (
    PARAMETER_KEYS,
    is_any_field,
    stored_name,
    suggestion,
)

NAMES = (*PARAMETER_KEYS, "cores", "gpus")
_COLUMNS = {stored_name(name) for name in NAMES}
MAX_LENGTH = 1000
_MAX_DEPTH = 20
_MAX_NUMBER = 1e15
"""Largest number in a condition or its results; floats represent whole numbers up to here."""
_MAX_EXPONENT = 16
_MODEL = "_model_"
_OF_MODEL = re.compile(rf"{_MODEL}(\d{{1,3}})\.(.+)")

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class ConditionError(ValueError):
    """A condition cannot be evaluated; args are the broken rule and the condition."""


_QUOTED = r"'[^']*'|\"[^\"]*\""
_MODEL_LIKE = re.compile(rf"{_QUOTED}|((?<![\w.])(?!config\.)[A-Za-z_][\w-]*\.(?=[A-Za-z_]))")


def names_a_model(condition: str) -> bool:
    """Return whether a condition has a name such as MODEL.PARAMETER."""
    return any(match[1] for match in _MODEL_LIKE.finditer(condition))


def models_in(condition: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return those models of which a condition names a parameter, as MODEL.PARAMETER."""
    named = {match[1] for match in _names_of(models).finditer(condition)}
    return tuple(model for model in models if model in named)


def _names_of(models: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of quoted texts, and of the models' names where a dot follows."""
    # A field of config.pbtxt begins like a parameter of a model of that name. Longest first.
    names = sorted({*models} - {"config"}, key=len, reverse=True)
    listed = "|".join(map(re.escape, names)) or "(?!)"
    return re.compile(rf"{_QUOTED}|(?<![\w.])({listed})\.(?=[A-Za-z_])")


def evaluate(condition: str, rows: Columns, models: Sequence[str] = ()) -> Mask:
    """Return which rows meet a condition such as "max_batch_size <= 16 or batching".

    A condition may use names, listed fields of config.pbtxt as config.PATH, numbers, texts, true
    and false, lists, comparisons, `in`, `and`, `or`, `not`, and + - * / // % **.

    Args:
        models: whose parameters are columns "MODEL.NAME", which the condition may name.

    Raises:
        ConditionError: the condition is no comparison of known names.
    """
    try:
        own = _with_numbers(condition, models)
        result = _Evaluation(rows, models).value(_parsed(own), 0)
    except (ValueError, TypeError, ArithmeticError) as error:
        rule = f"must be a comparison of {', '.join(NAMES)} ({error})"
        raise ConditionError(rule, condition) from error
    if not isinstance(result, np.ndarray) or not _is_truth(result):
        raise ConditionError("must be true or false for every point", condition)
    mask: Mask = result.astype(bool)
    return mask


def _with_numbers(condition: str, models: Sequence[str]) -> str:
    """Return a condition with the names of models as identifiers, which they may not be."""

    def number(match: re.Match[str]) -> str:
        return f"{_MODEL}{models.index(match[1])}." if match[1] else match[0]

    return _names_of(models).sub(number, condition)


def _parsed(condition: str) -> ast.expr:
    if len(condition) > MAX_LENGTH:
        raise ValueError(f"at most {MAX_LENGTH} characters, not {len(condition)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns about suspicious programs
            return ast.parse(_with_words(condition.strip()), mode="eval").body
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(error.args[0]) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply") from error


def _with_words(condition: str) -> str:
    """Return the condition with "and" and "or" in place of & and |, whose precedence differs."""
    tokens = tokenize.generate_tokens(io.StringIO(condition).readline)
    words = {"&": (tokenize.NAME, "and"), "|": (tokenize.NAME, "or")}
    return tokenize.untokenize(words.get(each[1], each[:2]) for each in tokens).strip()


def _is_truth(value: object) -> bool:
    """Return whether a value, or every value of a column, is true or false."""
    if isinstance(value, np.ndarray):
        return value.dtype == bool or all(isinstance(v, bool | np.bool_) for v in value)
    return isinstance(value, bool | np.bool_)


class _Evaluation:
    """Evaluates parts of a condition on the columns of a table.

    A value is a column, a number, a text, true or false, or a list of such constants.
    """

    def __init__(self, rows: Columns, models: Sequence[str]) -> None:
        self._rows = rows
        self._models = models

    def value(self, node: ast.expr, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        below = depth + 1
        match node:
            case ast.Name(id=name):
                return self._column(name)
            case ast.Attribute():
                return self._attribute(ast.unparse(node))
            case ast.Constant(value=constant):
                return _constant(constant)
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return [self._listed(part, below) for part in parts]
            case ast.BoolOp() | ast.Compare():
                return self._logical(node, below)
            case ast.UnaryOp() | ast.BinOp():
                return self._operation(node, below)
        raise _refused(node)

    def _logical(self, node: ast.BoolOp | ast.Compare, depth: int) -> Any:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return reduce(join, [self._truth(part, depth) for part in node.values])
        values = [self.value(part, depth) for part in (node.left, *node.comparators)]
        pairs = zip(node.ops, values, values[1:], strict=False)
        return reduce(operator.and_, [_compared(*each) for each in pairs])

    def _operation(self, node: ast.UnaryOp | ast.BinOp, depth: int) -> Any:
        if isinstance(node, ast.BinOp):
            if type(node.op) not in _ARITHMETIC:
                raise _refused(node)
            left, right = (self.value(part, depth) for part in (node.left, node.right))
            return _calculated(node.op, left, right)
        if isinstance(node.op, ast.Not | ast.Invert):
            return _negated(self._truth(node.operand, depth))
        number = _number(self.value(node.operand, depth))
        return -number if isinstance(node.op, ast.USub) else number

    def _column(self, name: str) -> Any:
        column = stored_name(name)
        if column not in _COLUMNS:
            raise ValueError(f"name {name!r} is not defined{suggestion(name, NAMES)}")
        if column not in self._rows:
            models = ", ".join(f"{model}.{name}" for model in self._models)
            raise ValueError(f"beside a model's parameter, {name} must be one of {models}")
        return self._rows[column]

    def _of_model(self, number: int, name: str) -> Any:
        model = self._models[number] if number < len(self._models) else ""
        column = f"{model}.{stored_name(name)}"
        if column not in self._rows:
            own = [c.removeprefix(f"{model}.") for c in map(str, self._rows)]
            near = suggestion(name, [*PARAMETER_KEYS, *filter(is_any_field, own)])
            raise ValueError(f"{name} is no parameter of {model}{near}")
        return self._rows[column]

    def _attribute(self, name: str) -> Any:
        if (match := _OF_MODEL.fullmatch(name)) is not None:
            return self._of_model(int(match[1]), match[2])
        if not is_any_field(name):
            raise ValueError(f"{name!r} is not allowed, and no parameter of one of the models")
        return self._field(name)

    def _field(self, name: str) -> Any:
        if name not in self._rows:
            listed = [column for column in map(str, self._rows) if is_any_field(column)]
            others = f", only {', '.join(listed)}" if listed else ""
            raise ValueError(f"{name!r} is not among the parameters{others}")
        return self._rows[name]

    def _truth(self, node: ast.expr, depth: int) -> Any:
        value = self.value(node, depth)
        if not _is_truth(value):
            raise ValueError(f"{ast.unparse(node)!r} is neither true nor false")
        return value.astype(bool) if isinstance(value, np.ndarray) else bool(value)

    def _listed(self, node: ast.expr, depth: int) -> Any:
        value = self.value(node, depth)
        if isinstance(value, np.ndarray | list):
            raise ValueError("a list must contain only numbers and texts")
        return value


def _refused(node: ast.expr) -> ValueError:
    return ValueError(f"{ast.unparse(node)!r} is not allowed")


def _constant(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    if not isinstance(value, str | bool):
        raise ValueError(f"{value!r} is not allowed")
    return value


def _number(value: Any) -> Any:
    """Return a number, or a column of numbers, as floats, which cannot overflow silently."""
    if isinstance(value, np.ndarray):
        if not (value.dtype != object or all(isinstance(v, int | float | np.bool_) for v in value)):
            raise ValueError("arithmetic needs numbers")
        return value.astype(float)
    if not isinstance(value, int | float):
        raise ValueError("arithmetic needs numbers")
    if abs(value) > _MAX_NUMBER or math.isnan(value):
        raise ValueError(f"numbers must be from -{_MAX_NUMBER:g} to {_MAX_NUMBER:g}")
    return float(value)


def _calculated(op: ast.operator, left: Any, right: Any) -> Any:
    left, right = _number(left), _number(right)
    if isinstance(op, ast.Pow) and (
        isinstance(right, np.ndarray) or not 0 <= right <= _MAX_EXPONENT
    ):
        raise ValueError(f"an exponent must be a number from 0 to {_MAX_EXPONENT}")
    with np.errstate(all="ignore"):
        result = _ARITHMETIC[type(op)](left, right)
    return result if isinstance(result, np.ndarray) else _number(result)


def _compared(op: ast.cmpop, left: Any, right: Any) -> Any:
    if isinstance(left, list):
        raise ValueError("a list goes only on the right of `in`")
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, list):
            raise ValueError("on the right of `in` must be a list")
        return _within(left, right) if isinstance(op, ast.In) else _negated(_within(left, right))
    if type(op) not in _COMPARISONS or isinstance(right, list):
        raise ValueError("values are compared by ==, !=, <, <=, > and >=, lists by `in`")
    try:
        return _COMPARISONS[type(op)](left, right)
    except TypeError as error:
        raise ValueError("texts and numbers cannot be compared by <, <=, > or >=") from error


def _within(left: Any, values: list[Any]) -> Any:
    if isinstance(left, np.ndarray):
        return np.array([value in values for value in left.tolist()])
    return left in values


def _negated(truth: Any) -> Any:
    return ~truth if isinstance(truth, np.ndarray) else not truth
