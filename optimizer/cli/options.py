"""Option types and options that several commands share."""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import click

from optimizer.cli.process_title import CACHE_VARIABLE, STORAGE_VARIABLE
from optimizer.fleet.price_rules import Accepted
from optimizer.space_file.section import duration_seconds

_LONGEST_LIMIT_MS = 3.6e6
_LONGEST_SETTING = 500


class _Finite(click.FloatRange):
    """A finite number within bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail with the rule."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Rate(_Finite):
    """A request rate per second: above 0, and no more than any fleet serves."""

    def __init__(self) -> None:
        super().__init__(min=0.001, max=1e7)


class Share(_Finite):
    """Spare capacity, as a share of the demand."""

    def __init__(self) -> None:
        super().__init__(min=0, max=10)


class Percent(_Finite):
    """Percent by which a figure may differ, such as 10 or 10%."""

    def __init__(self, most: float = 1e6) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail with the rule."""
        number = value.removesuffix("%") if isinstance(value, str) else value
        return super().convert(number, param, ctx)


COUNT = click.IntRange(min=1)


class ClockTime(click.ParamType[datetime.time]):
    """A time of day such as 07:00, by the local clock."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime.time:
        """Return the time, or fail with the rule."""
        try:
            if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text := str(value)) is None:
                raise ValueError(text)
            return datetime.time.fromisoformat(text)
        except ValueError:
            self.fail(f"must be a time of day, HH:MM or HH:MM:SS; got {value!r}", param, ctx)


class Duration(click.ParamType[float]):
    """A duration such as 8h as seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds, or fail with the rule."""
        try:
            return duration_seconds(str(value))
        except ValueError as error:
            self.fail(f"{error}; got {value!r}", param, ctx)


class LatencyLimitMs(click.ParamType[float]):
    """A latency limit such as 300ms or 0.5s as milliseconds."""

    name = "latency"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return milliseconds, or fail with the rule."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", str(value))
        limit_ms = float(match[1]) * {"ms": 1.0, "s": 1e3}[match[2]] if match is not None else 0.0
        if not 0 < limit_ms <= _LONGEST_LIMIT_MS:
            rule = "must be a number above 0 and ms or s, such as 300ms, and at most an hour"
            self.fail(f"{rule}; got {value!r}", param, ctx)
        return limit_ms


def _settings(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        name, _equals, value = pair.partition("=")
        if not (name and value):
            raise click.BadParameter(f"must be PARAMETER=VALUE; got {pair[:80]!r}")
        if len(pair) > _LONGEST_SETTING:
            raise click.BadParameter(f"must be at most {_LONGEST_SETTING} characters")
        settings[name] = value
    return settings


def or_variable(
    variable: str,
) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return the callback of an option that one of `SECRET_VARIABLES` sets too."""

    def value_of(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
        return value or (context.find_root().obj or {}).get(variable)

    return value_of


Verbosity = Literal["quiet", "verbose"]
"""How much is printed, where it is not the default."""

_Command = Callable[..., object]
_Option = Callable[[_Command], _Command]


def _in_order(*options: _Option) -> _Option:
    """Join several options to one decorator; help lists them in this order."""

    def with_options(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


def seed_option(user: str) -> _Option:
    """Return the option --seed, for what uses the random numbers."""
    return click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
        help=f"Random seed of {user}.",
    )  # fmt: skip


def json_option(content: str) -> _Option:
    """Return the option --json, a file for some content."""
    return click.option(
        "--json", type=click.Path(path_type=Path), metavar="FILE", help=f"Write {content} as JSON."
    )


space_argument = click.argument("space", type=click.Path(path_type=Path))
settings_option = click.option(
    "--set", "settings", multiple=True, callback=_settings, metavar="PARAMETER=VALUE",
    help="Set a parameter, such as precision=int8. Default: the baseline's values. Repeatable.",
)  # fmt: skip
results_option = click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="Folder of the studies.",
)  # fmt: skip
cache_option = click.option(
    "--cache", envvar=CACHE_VARIABLE, metavar="FOLDER|URL",
    help="Folder of the artefact cache, or URL of one that hosts share, such as "
    f"s3://BUCKET/FOLDER. Also set by {CACHE_VARIABLE}.",
)  # fmt: skip
storage_option = click.option(
    "--storage", callback=or_variable(STORAGE_VARIABLE), metavar="URL",
    help="URL of a study database, such as postgresql://USER@HOST/DATABASE. Also set by "
    f"{STORAGE_VARIABLE}. Default: the journal file in the study's folder.",
)  # fmt: skip

run_options = _in_order(
    click.option(
        "--quiet", "verbosity", flag_value="quiet", help="Print only warnings and the result.",
    ),
    click.option(
        "--verbose", "verbosity", flag_value="verbose",
        help="Print every step and load level as lines. logs/run.log always has them.",
    ),
    results_option,
    cache_option,
)  # fmt: skip
"""--quiet and --verbose, of which the last one counts (`verbosity`), --results and --cache."""


def server_options(command: _Command) -> _Command:
    """Add --launcher and its options, which become one argument `server` of those given."""

    @functools.wraps(command)
    def with_server(**options: Any) -> object:
        server = {name: options.pop(name) for name in _SERVER}
        server = {name: value for name, value in server.items() if value is not None}
        return command(**options, server=server)

    decorated: _Command = with_server
    for name, help_text in reversed(list(_SERVER.items())):
        kind = click.Choice(["embedded", "docker", "remote"]) if name == "launcher" else None
        decorated = click.option(f"--{name}", name, type=kind, help=help_text)(decorated)
    return decorated


_SERVER: Mapping[str, str] = {
    "launcher": "How the server is started. Default: as in the study's measurements.",
    "image": "Image of the server, with its tag (docker).",
    "grpc": "Address of the server's gRPC endpoint, host:port (remote).",
    "http": "Address of the server's HTTP endpoint, host:port (remote).",
    "metrics": "Address of the server's metrics endpoint, host:port (remote).",
    "repository": "Folder on this machine that is the server's model repository (remote).",
}


allow_code_option = click.option(
    "--allow-code", is_flag=True,
    help="Also run code of the models that is neither this program's nor in its artefact cache: "
    "Python models, libraries, TensorRT engines, PyTorch programs.",
)  # fmt: skip


pricing_options = _in_order(
    click.option(
        "--rate", type=click.Choice(["on-demand", "spot", "reserved"]),
        help="Use this rate of the price list. Default: the price of each study.",
    ),
    click.option("--region", help="Use the price list's prices of this region."),
    click.option(
        "--accept", "accepted", type=click.Choice(get_args(Accepted)), multiple=True,
        help="Accept prices of different hardware, or of more than one region, rate or basis.",
    ),
)  # fmt: skip
"""--rate, --region and --accept: the prices that are used."""
