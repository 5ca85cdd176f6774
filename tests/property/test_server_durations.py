"""Durations of crio.conf, as the engine gets them."""

from dataclasses import replace

import pytest

from crio_server.config import Config
from crio_server.options import engine_options


@pytest.mark.parametrize(
    ("text", "window_s"), [("45s", 45.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("250ms", 0.25), ("0s", 30.0), ("0", 30.0)]
)
def test_pull_progress_timeout_is_how_long_a_slow_source_is_borne(text: str, window_s: float) -> None:
    """R13: CRI-O's key, in Go's words; 0 leaves it to us, for a pull that may hang for ever is no choice."""
    config = replace(Config(), pull_progress_timeout=text, seccomp_profile="")
    assert engine_options(config).registries.progress_window_s == window_s
