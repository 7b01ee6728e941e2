"""No password of an address is shown, however it is written."""

from __future__ import annotations

import pytest

from optimizer.cli.process_title import without_passwords
from optimizer.files.credentials import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:s3cret@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("postgresql+psycopg://me:p%40ss@db/x", "postgresql+psycopg://me:***@db/x"),
        # What should have been percent-encoded is hidden all the same.
        ("postgresql://me:p@ss/w:rd@db/x", "postgresql://me:***@db/x"),
        ("postgresql://:only@db/x", "postgresql://:***@db/x"),
        ("mysql://me@db/x?password=s3cret&ssl=1", "mysql://me@db/x?password=***&ssl=1"),
        (
            "ftp://me:one@host/a and s3://KEY:two@bucket",
            "ftp://me:***@host/a and s3://KEY:***@bucket",
        ),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
        ('host=db password=s3cret user="me"', 'host=db password=*** user="me"'),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@db:5432/x",
        "s3://bucket/folder",
        "file:///srv/cache",
        "connection failed: a@b.c: no such host",
        "sqlite:///study.db",
    ],
)
def test_what_has_no_password_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_options_with_a_password_become_variables() -> None:
    url, cache = "postgresql://me:s3cret@db/x", "ftp://me:s3cret@host/cache"
    arguments = ["-m", "optimizer", "run", "--storage", url, "space.yaml", f"--cache={cache}"]
    assert without_passwords(arguments) == (
        ["-m", "optimizer", "run", "space.yaml"],
        {"OPTIMIZER_STORAGE": url, "OPTIMIZER_CACHE": cache},
    )


def test_options_without_a_password_stay_where_they_are() -> None:
    arguments = ["run", "--storage", "postgresql://me@db/x", "--cache=/srv/cache", "--storage"]
    kept, variables = without_passwords(arguments)
    assert kept[:4] == arguments[:4]
    assert not variables
