"""Passwords among the arguments of this process, which `ps` shows to every user."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from optimizer.files.credentials import without_credentials

STORAGE_VARIABLE = "OPTIMIZER_STORAGE"
CACHE_VARIABLE = "OPTIMIZER_CACHE"
NOTIFY_VARIABLE = "OPTIMIZER_NOTIFY"

SECRET_VARIABLES = (STORAGE_VARIABLE, NOTIFY_VARIABLE)
"""Variables that no process which a command starts needs."""

_NOTIFY = "--notify"
_VARIABLES = {
    "--storage": STORAGE_VARIABLE,
    "--cache": CACHE_VARIABLE,
    _NOTIFY: NOTIFY_VARIABLE,
}
"""Options whose values may have a password, and the variables that say the same."""


def hide_passwords() -> None:
    """Replace this process by one that has the passwords of its arguments in its environment.

    It stays the same process to its parent and its terminal.
    """
    arguments, variables = without_passwords(sys.orig_argv[1:])
    if variables:
        environment = {**os.environ, **variables}
        os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606


def without_passwords(arguments: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """Return the arguments without options that have a password; and these, as variables."""
    kept: list[str] = []
    variables: dict[str, str] = {}
    left = iter(arguments)
    for argument in left:
        option, equals, value = argument.partition("=")
        own = [argument]
        if option in _VARIABLES and not equals:
            value = next(left, "")
            own.append(value)
        if option in _VARIABLES and _has_password(option, value):
            variables[_VARIABLES[option]] = value
        else:
            kept += own
    return kept, variables


def _has_password(option: str, value: str) -> bool:
    """Return whether a value has a password; the path of a webhook often is one."""
    return without_credentials(value) != value or (option == _NOTIFY and "://" in value)
