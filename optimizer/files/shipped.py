"""Files that ship with the package: in its data folder if installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def import_folder() -> Path:
    """Return the folder that has this package.

    A process of `python -m` that is started there imports nothing from the user's working folder,
    which may be a stranger's.
    """
    return _PACKAGE.parent


def shipped(name: str) -> Path:
    """Return the path of a shipped folder or file, such as "model_repository_templates".

    Raises:
        FileNotFoundError: when the installation lacks it.
    """
    for parent in (_PACKAGE / "data", _PACKAGE.parent):
        if (parent / name).exists():
            return parent / name
    raise FileNotFoundError(f"this installation of optimizer lacks {name}")
