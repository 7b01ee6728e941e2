"""Documented Python: parsed to see whether it serves anything, and executed."""

from __future__ import annotations

import ast

from tests.docs.blocks import Block

_SERVING = ("run", "measure")


def searches(block: Block) -> bool:
    """Whether it calls what needs a server."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _SERVING
        for node in ast.walk(ast.parse(block.text))
    )


def run_block(block: Block) -> None:
    """Execute it in a namespace of its own; an error names its page and line."""
    exec(compile(block.text, block.place, "exec"), {"__name__": "documented"})
