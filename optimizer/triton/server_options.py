"""Flags of tritonserver for `ServerOptions`."""

from __future__ import annotations

from optimizer.configuration.serving_config import ServerOptions

EXECUTION = "execution"
"""Resource of the rate limiter; every execution of a rate-limited model holds one."""


_LEAST_WITH_FLAG = (2, 68)
"""Triton from this version on refuses shared memory of clients by default; before, it has no flag
for it."""


def shared_memory_flags(triton_version: str | None) -> list[str]:
    """Return the flags by which a server lets clients register system shared memory.

    Args:
        triton_version: such as "2.69.0"; None where it is unknown, as in an image of one's own.
    """
    parts = (triton_version or "").split(".")[:2]
    newer = all(map(str.isdecimal, parts)) and tuple(map(int, parts)) >= _LEAST_WITH_FLAG
    return ["--allow-client-shm=true"] if newer else []


def option_flags(options: ServerOptions) -> list[str]:
    """Return the flags, none for tritonserver's defaults."""
    flags = [f"--backend-config={b},{key}={value}" for b, key, value in options.backend_config]
    if options.executions_per_device is not None:
        resource = f"{EXECUTION}:{options.executions_per_device}"
        flags += ["--rate-limit=execution_count", f"--rate-limit-resource={resource}"]
    if options.cache_bytes is not None:
        flags.append(f"--cache-config=local,size={options.cache_bytes}")
    return flags
