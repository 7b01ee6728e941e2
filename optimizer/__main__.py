"""`python -m optimizer`, which imports nothing from the working folder: it may be a stranger's."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python searches the working folder first, which has this program in a checkout only.
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).resolve().parents[1]:
        del sys.path[0]

    from optimizer.cli import main

    main()
