"""The forms that a configuration has had, and how a file of an older form is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mm_spine.config.values import ConfigError

VERSION = 2
"""The form of today's configuration tree. mm-spine 0.1 wrote the first form, without the key `version`."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]

_MOVED = {"ear": "adv_res", "unparsed_penalty": 7.0}
"""Options that every method had in the first form, and now only those that read them: key -> default, then and now."""


def _without_moved(tree: dict[str, Any]) -> dict[str, Any]:
    """Drop `_MOVED` options that have their defaults: they change nothing where they exist, and may not exist."""
    method = tree.get("method")
    if not isinstance(method, Mapping):
        return tree
    kept = {key: value for key, value in method.items() if key not in _MOVED or value != _MOVED[key]}
    return {**tree, "method": kept}


MIGRATIONS: Mapping[int, Migration] = {1: _without_moved}
"""Form -> how a tree of this form becomes one of the next. Only a renamed or moved key, or one whose values mean
something else, needs a new form: an added key has a default."""


def upgraded(
    tree: Mapping[str, Any], where: Path | str, version: int = VERSION, migrations: Mapping[int, Migration] = MIGRATIONS
) -> dict[str, Any]:
    """Return a tree of any known form in the form `version`, without the key `version`. `where` names it in errors.

    A tree without the key is taken for one of the first form. Raises ConfigError for a form that is not known.
    """
    found = dict(tree)
    form = found.pop("version", 1)
    if not isinstance(form, int) or isinstance(form, bool) or form < 1:
        raise ConfigError(f"{where}: version={form!r} is no form of a configuration; give 1 to {version}, or none")
    if form > version:
        raise ConfigError(f"{where}: version={form} is of a newer mm-spine, this one reads up to {version}; upgrade it")
    for step in range(form, version):
        found = migrations[step](found)
    return found
