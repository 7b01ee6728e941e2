"""Errors in replies of a server, in words for people: the step that failed, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FAILED = re.compile(
    r"(?:in ensemble '[^']*', )?Failed to process the request\(s\) for model '([^']+)', message: "
)
_INSTANCE = re.compile(r"(.+)_\d+(_gpu\d+)?")
"""An instance is called by its group, its number and its GPU."""

_NOT_READY = re.compile(r"Model '([^']+)' is not ready")


def explained_error(text: str, model: str, groups: Iterable[tuple[str, str]]) -> str:
    """Return the error of a reply without traceback, with the step that made it.

    Args:
        text: of the error.
        model: that the request was sent to.
        groups: names of the loaded models, and of their instance groups; one for each group.
    """
    text = " ".join(text.split())
    failed = [*_FAILED.finditer(text)]
    if failed:
        first, last = failed[0], failed[-1]
        step = _model_of(last[1], groups)
        named = "" if step == model else f"step {step}: "
        text = f"{text[: first.start()]}{named}{text[last.end() :]}"
    text = text.partition(" At: ")[0]
    missing = _NOT_READY.search(text)
    if missing is not None and missing[1] != model:
        text += f" If {model} calls {missing[1]} by its own code, list it under source.calls."
    return text


def _model_of(instance: str, groups: Iterable[tuple[str, str]]) -> str:
    """Return the model that an instance is of; its group is usually called like the model."""
    match = _INSTANCE.fullmatch(instance)
    group = match[1] if match is not None else instance
    names = [name for name, own in groups if own == group]
    return " or ".join(dict.fromkeys(names)) or group
