"""Credentials in the addresses of databases and object stores, which nothing may show."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?<=://)([^\s:@]*):\S*@")
_PARAMETER = re.compile(
    r"(?<=[?&\s])([\w-]*(?:password|passwd|secret|token|signature|key)[\w-]*=)[^&\s]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Return a text in which the passwords of addresses are replaced by "***".

    A password is what follows the user's name up to the last @, so that one which should have been
    percent-encoded is hidden as well, or the value of a parameter whose name says so.

    >>> without_credentials("postgresql://me:s3cret@db/studies?sslpassword=x")
    'postgresql://me:***@db/studies?sslpassword=***'
    """
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))
