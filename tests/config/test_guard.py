"""The section `guard` of the configuration."""

from __future__ import annotations

import pytest

from mm_spine.config import ConfigError
from mm_spine.config.layers import build, parse_overrides


def test_off_is_read_as_it_is_written_on_the_command_line() -> None:
    """YAML reads the word as false."""
    assert build(parse_overrides(["guard.act=off"])).guard.act == "off"
    with pytest.raises(ConfigError, match="guard.act=True"):
        build(parse_overrides(["guard.act=on"]))
