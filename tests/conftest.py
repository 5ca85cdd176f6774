"""Settings of all tests."""

import os

import pytest
from hypothesis import settings

_SUMMARY = pytest.StashKey[list[str]]()


@pytest.fixture
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines to print when all tests are over."""
    return pytestconfig.stash.setdefault(_SUMMARY, [])


# Continuous integration judges a change by the same examples each time; everywhere else every run tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what tests have measured: how fast the simulated node was, and which transitions were taken."""
    for line in config.stash.get(_SUMMARY, []):
        terminalreporter.write_line(line)
