"""How each documented command is checked: run without a server, run on a real one, or only parsed.

A command that is in none of the three lists fails `test_commands`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.docs.blocks import Command
from tests.docs.parsing import command_of

RUN_AT_ONCE = frozenset(
    {
        "cache", "compare", "diff", "doctor", "init", "pareto", "plan", "prices", "recommend",
        "replay", "report", "simulate", "status",
    }
)  # fmt: skip
"""Commands that read studies or bundles; they are run on generated ones, without a server."""

RUN_ON_A_SERVER = frozenset({"export", "measure", "run", "verify"})
"""Commands that serve models; they are run on the embedded server, with a tiny model."""

_BASELINES = "tests/e2e/test_baseline.py runs it, on a tiny model"
_RECORDS = "tests/e2e/test_record.py runs it, on a tiny model, and replays its table"

_ON_A_CLUSTER = "tests/e2e/test_cluster.py runs it on a Ray cluster, with a tiny model"

_SERVES = "serves until it is interrupted; tests/e2e/test_serve.py starts and ends it"

_GPUS = "needs several GPUs; tests/unit/test_machine_slots.py divides recorded machines"

_PATCHES = (
    "needs a study of a model repository; tests/e2e/test_patch.py exports, applies and verifies one"
)

_OBSERVES = "needs servers under load; tests/e2e/test_observe.py observes one and replays it"

PARSED_ONLY: Mapping[str, str] = {
    "python -m optimizer observe gpu-0:8001 gpu-1:8001 gpu-2:8001 --limit 200ms "
    "--price ml.g5.xlarge --record counters.jsonl": _OBSERVES,
    "python -m optimizer observe counters.jsonl --limit 100ms": _OBSERVES,
    "python -m optimizer observe curl.jsonl": _OBSERVES,
    "python -m optimizer observe gpu-0:8001 gpu-1:8001 --after bundle": (
        "needs servers under load; tests/unit/test_observed_drift.py compares simulated ones"
    ),
    "python -m optimizer observe --prometheus http://prometheus:9090 --query-range 24h "
    "--selector 'namespace=\"prod\"' --repository models --model bert --limit 200ms": (
        "needs a Prometheus; tests/e2e/test_observe.py queries one that scrapes a real server"
    ),
    "python -m optimizer observe counters.jsonl --limit 200ms --page advice.html "
    "--repository models --patch advice.patch --space space.yaml": (
        "needs a recording; tests/unit/test_observe.py writes both files from a simulated one"
    ),
    "python -m optimizer baseline search_spaces/quickstart.yaml": _BASELINES,
    "python -m optimizer dashboard quickstart": (
        "serves until it is interrupted; tests/e2e/test_dashboard.py starts and ends it"
    ),
    "python -m optimizer export my-model --format patch --base ./models --to patch": _PATCHES,
    "python -m optimizer verify ../patch --patched .": _PATCHES,
    "python -m optimizer measure space.yaml --rate 300 --with perf_analyzer": (
        "needs perf_analyzer on PATH; tests/e2e/test_measure.py runs it where it is installed"
    ),
    "python -m optimizer prices update --region eu-west-1 --type ml.g5.xlarge --type g5.xlarge": (
        "needs AWS credentials; tests/unit/test_price_list.py asks a stub of the price list"
    ),
    "python -m optimizer record search_spaces/short_sequences.yaml": _RECORDS,
    "python -m optimizer recommend t4 a10g --advanced": (
        "needs advanced jobs of two hosts; tests/unit/test_recommending.py ranks generated ones"
    ),
    "python -m optimizer run search_spaces/bert_large.yaml --notify https://example.com/hook": (
        "needs GPUs; tests/unit/test_notification.py notifies commands and URLs"
    ),
    "python -m optimizer serve bundle": _SERVES,
    "python -m optimizer serve quickstart": _SERVES,
    "python -m optimizer serve quickstart --baseline": _SERVES,
    "python -m optimizer run space.yaml --study second --warm-start my-model": (
        "is the command of docs/how-to/own-prices.md, which is run, with another study"
    ),
    "python -m optimizer run space.yaml --study team "
    "--storage postgresql://me@db.example.com/studies": (
        "needs PostgreSQL; tests/e2e/test_team.py runs it, with a server of its own"
    ),
    "python -m optimizer run space.yaml --study shared --cache file:///srv/artefacts": (
        "tests/e2e/test_team.py runs it on two caches, with a folder of its own"
    ),
    "python -m optimizer run space.yaml --study second-kind --prior my-model": (
        "is run by tests/e2e/test_team.py, on a tiny model"
    ),
    "python -m optimizer run space.yaml --with cold-start --with transports --with bursts": (
        "is run by tests/e2e/test_winner.py and test_bursts.py, on small models"
    ),
    "python -m optimizer run space.yaml --gpus all": _GPUS,
    "python -m optimizer run space.yaml --gpus 0,2": _GPUS,
    "python -m optimizer run space.yaml --gpus all --max-disturbance 10%": _GPUS,
    "python -m optimizer run space.yaml --wait-for-quiet 10m": (
        "waits for other processes; tests/unit/test_run_context.py has it look and wait"
    ),
    "python -m optimizer run space.yaml --slots 4": (
        "needs four cores; tests/e2e/test_slots.py runs it with two slots, on a tiny model"
    ),
    "python -m optimizer run search_spaces/text_classification.yaml": (
        "tests/e2e/test_text_classification.py runs the same pipeline, with a tiny model"
    ),
    "python -m optimizer run space.yaml --cluster auto --cache /shared/cache": _ON_A_CLUSTER,
    "python -m optimizer run space.yaml --cluster auto --each-accelerator-type": _ON_A_CLUSTER,
    "python -m optimizer recommend my-model-T4 my-model-A10G": _ON_A_CLUSTER,
    "python -m optimizer run search_spaces/bert_large.yaml": (
        "needs NVIDIA GPUs, a Docker engine and a night"
    ),
}
"""Commands that cannot be run in tests, with the reason; their options are parsed."""


def on_a_server(command: Command) -> bool:
    """Return whether the command is run on a real server (`recommend --search` is, too)."""
    return str(command) not in PARSED_ONLY and (
        command_of(command) in RUN_ON_A_SERVER or "--search" in command.words
    )


def at_once(command: Command) -> bool:
    """Return whether the command is run without a server."""
    listed = str(command) in PARSED_ONLY or on_a_server(command)
    return not listed and command_of(command) in RUN_AT_ONCE
