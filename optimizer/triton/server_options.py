"""Flags of tritonserver for `ServerOptions`."""

from __future__ import annotations

from optimizer.configuration.serving_config import ServerOptions

EXECUTION = "execution"
"""Resource of the rate limiter; every execution of a rate-limited model holds one."""


def option_flags(options: ServerOptions) -> list[str]:
    """Return the flags, none for tritonserver's defaults."""
    flags = [f"--backend-config={b},{key}={value}" for b, key, value in options.backend_config]
    if options.executions_per_device is not None:
        resource = f"{EXECUTION}:{options.executions_per_device}"
        flags += ["--rate-limit=execution_count", f"--rate-limit-resource={resource}"]
    if options.cache_bytes is not None:
        flags.append(f"--cache-config=local,size={options.cache_bytes}")
    return flags
