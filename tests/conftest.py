"""Settings of all tests."""

import os

from hypothesis import settings

# Continuous integration judges a change by the same examples each time; everywhere else every run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
