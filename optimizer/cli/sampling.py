"""`--sampler`, apart from the other options: its values come with Optuna, which takes long."""

from __future__ import annotations

import click

from optimizer.search.samplers import SAMPLERS

sampler_option = click.option(
    "--sampler", type=click.Choice(list(SAMPLERS)), default="guided", show_default=True,
    help="What proposes configurations.",
)  # fmt: skip
