"""Settings that every suite shares."""

from __future__ import annotations

import os

from hypothesis import settings

# A shared machine is slow at times, so an example has no deadline of its own. Continuous
# integration draws the same examples in every run.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
