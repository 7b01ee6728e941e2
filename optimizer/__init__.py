"""Find the cheapest way to serve a model on NVIDIA Triton within a latency limit.

    import optimizer

    study = optimizer.run("search_spaces/quickstart.yaml")
    study.trials()

`optimizer.api` has the functions. It is imported when one of these names is first used, so that
`import optimizer` itself imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Study",
    "__version__",
    "load_space",
    "measure",
    "run",
    "run_each_accelerator_type",
    "simulate",
]

if TYPE_CHECKING:
    from optimizer.api import (
        Study,
        load_space,
        measure,
        run,
        run_each_accelerator_type,
        simulate,
    )
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            from importlib import import_module

            return getattr(import_module("optimizer.api"), name)
        raise AttributeError(f"module 'optimizer' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
