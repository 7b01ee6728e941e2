"""Documented Python code: whether it needs a server, and its execution."""

from __future__ import annotations

import ast

from tests.docs.blocks import Block

_SERVING = ("run", "measure")


def searches(block: Block) -> bool:
    """Return whether the code calls a function that needs a server."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _SERVING
        for node in ast.walk(ast.parse(block.text))
    )


def run_block(block: Block) -> None:
    """Execute the code in its own namespace; an error names its page and line."""
    exec(compile(block.text, block.place, "exec"), {"__name__": "documented"})
