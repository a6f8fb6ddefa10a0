"""What differs between the starts of two runs is named."""

from __future__ import annotations

from mm_spine.files.fingerprint import plugin_differences


def test_plugins_that_changed_were_left_out_or_added_are_named() -> None:
    old = {"plugins": {"a.py": "1", "b.py": "2", "c.py": "3"}}
    new = {"plugins": {"b.py": "5", "c.py": "3", "d.py": "4"}}
    assert list(plugin_differences(old, new)) == [
        "the plugin a.py was left out (--plugin)",
        "the plugin b.py changed",
        "the plugin d.py was added",
    ]
    assert list(plugin_differences(old, old)) == []


def test_a_run_of_an_earlier_version_had_no_plugins() -> None:
    assert list(plugin_differences({}, {"plugins": {}})) == []
    assert list(plugin_differences({}, {"plugins": {"a.py": "1"}})) == ["the plugin a.py was added"]
