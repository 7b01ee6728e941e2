"""Credentials in addresses and in the environment, which nothing may show or pass on."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PASSWORD = re.compile(r"(?<=://)([^\s:@]*):\S*@")
_PARAMETER = re.compile(
    r"(?<=[?&\s])([\w-]*(?:password|passwd|secret|token|signature|key)[\w-]*=)[^&\s]+",
    re.IGNORECASE,
)


_SECRET_NAME = re.compile(
    r"AWS_.*|OPTIMIZER_(STORAGE|CACHE)|SSH_AUTH_SOCK"
    r"|.*(PASSWORD|PASSWD|SECRET|TOKEN(?!IZER)|CREDENTIAL|_KEY|APIKEY).*",
    re.IGNORECASE,
)
"""Names of variables that hold a secret, or the place of one."""


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables whose names say that they hold a secret.

    >>> without_secrets({"PATH": "/usr/bin", "AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "y"})
    {'PATH': '/usr/bin'}
    """
    return {k: v for k, v in environment.items() if not _SECRET_NAME.fullmatch(k)}


def without_credentials(text: str) -> str:
    """Return a text in which the passwords of addresses are replaced by "***".

    A password is what follows the user's name up to the last @, so that one which should have been
    percent-encoded is hidden as well, or the value of a parameter whose name says so.

    >>> without_credentials("postgresql://me:s3cret@db/studies?sslpassword=x")
    'postgresql://me:***@db/studies?sslpassword=***'
    """
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
