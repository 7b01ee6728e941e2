"""Options that several commands share."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click

from optimizer.fleet.price_rules import Accepted
from optimizer.space_file.section import duration_seconds

_LONGEST_LIMIT_MS = 3.6e6
_LONGEST_SETTING = 500


class _Finite(click.FloatRange):
    """A number within bounds; one that is not finite is within none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, or a usage error that says the rule."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Rate(_Finite):
    """Requests a second: above 0, and no more than any fleet serves."""

    def __init__(self) -> None:
        super().__init__(min=0.001, max=1e7)


class Share(_Finite):
    """A share of the demand, kept free above it."""

    def __init__(self) -> None:
        super().__init__(min=0, max=10)


class Percent(_Finite):
    """Percent by which a figure may differ."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=1e6)


SEED = click.IntRange(0, 2**63 - 1)
COUNT = click.IntRange(min=1)


class Duration(click.ParamType[float]):
    """A duration such as 8h as seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds, or a usage error that says the rule."""
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
        """Milliseconds, or a usage error that says the rule."""
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


settings_option = click.option(
    "--set", "settings", multiple=True, callback=_settings, metavar="PARAMETER=VALUE",
    help="A parameter's value, such as precision=int8; else the baseline's.",
)  # fmt: skip
results_option = click.option(
    "--results", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="Folder of the studies.",
)  # fmt: skip
cache_option = click.option(
    "--cache", type=click.Path(path_type=Path), envvar="OPTIMIZER_CACHE",
    help="Folder of the artefact cache; also OPTIMIZER_CACHE.",
)  # fmt: skip


Said = Literal["quiet", "verbose"]
"""How much is said, where it is not what is usual."""

_Command = TypeVar("_Command", bound=Callable[..., object])


def _in_order(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; help shows them as they stand here."""

    def with_options(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options


said_options = _in_order(
    click.option(
        "--quiet", "said", flag_value="quiet", help="Say warnings and the outcome alone.",
    ),
    click.option(
        "--verbose", "said", flag_value="verbose",
        help="Say every step and level, as lines; logs/run.log has them in any case.",
    ),
)  # fmt: skip
"""--quiet and --verbose, of which the later counts: one argument, `said`."""


def server_options(command: Callable[..., object]) -> Callable[..., object]:
    """--launcher and what goes with it, as one argument `server`: those that were given."""

    @functools.wraps(command)
    def with_server(**options: Any) -> object:
        server = {name: options.pop(name) for name in _SERVER}
        given = {name: value for name, value in server.items() if value is not None}
        return command(**options, server=given)

    decorated: Callable[..., object] = with_server
    for name, help_text in reversed(list(_SERVER.items())):
        kind = click.Choice(["embedded", "docker", "remote"]) if name == "launcher" else None
        decorated = click.option(f"--{name}", name, type=kind, help=help_text)(decorated)
    return decorated


_SERVER: Mapping[str, str] = {
    "launcher": "Which server; else of the kind that measured.",
    "image": "docker: the image, with its tag.",
    "grpc": "remote: host:port, as are --http and --metrics.",
    "http": "remote: host:port.",
    "metrics": "remote: host:port.",
    "repository": "remote: folder here that is the server's model repository.",
}


pricing_options = _in_order(
    click.option(
        "--rate", type=click.Choice(["on-demand", "spot", "reserved"]),
        help="Charge this rate of the price list; else what each study was charged.",
    ),
    click.option("--region", help="Charge the price list's price in this region."),
    click.option(
        "--accept", type=click.Choice(get_args(Accepted)), multiple=True,
        help="Prices of another machine, or of more than one region, rate or basis.",
    ),
)  # fmt: skip
"""--rate, --region and --accept: which prices are charged."""
