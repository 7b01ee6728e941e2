"""What `ServerOptions` come to on tritonserver's command line."""

from __future__ import annotations

from optimizer.configuration.serving_config import ServerOptions

EXECUTION = "execution"
"""The rate limiter's resource that every execution of a rate-limited model takes one of."""


def option_flags(options: ServerOptions) -> list[str]:
    """Flags of tritonserver; none where nothing differs from its defaults."""
    flags = [f"--backend-config={b},{key}={value}" for b, key, value in options.backend_config]
    if options.executions_per_device is not None:
        resource = f"{EXECUTION}:{options.executions_per_device}"
        flags += ["--rate-limit=execution_count", f"--rate-limit-resource={resource}"]
    return flags
