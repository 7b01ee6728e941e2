"""Processes in messages."""

from __future__ import annotations

import psutil


def process_text(pid: int) -> str:
    """Return name and id of a process, such as "python (process 41)"."""
    try:
        return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        return f"process {pid}"
