"""Files of the user's own code, given as `--plugin FILE.py`, which add methods, answer kinds and benchmarks.

A file is imported once, before anything is looked up by name. It calls `register_method`, `register_kind` and
`register_benchmark` of `mm_spine`. Nothing but the option loads one: a run's configuration never does.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mm_spine.config.values import ConfigError
from mm_spine.words import one_line

_PREFIX = "mm_spine_plugin_"

_digests: dict[Path, str] = {}


def load(path: str | Path) -> ModuleType:
    """Import the file as a module of a name of its own and return it; a file that is loaded already is not run again.

    Raises ConfigError naming the file, and its line where an error in it is the cause.
    """
    path = Path(path)
    # The file itself: a link to it is the same plugin.
    place = path.resolve()
    name = _PREFIX + place.stem
    if place in _digests:
        return sys.modules[name]
    if path.suffix != ".py":
        raise ConfigError(f"--plugin {path}: not a Python file; give one whose name ends in .py")
    if name in sys.modules:
        raise ConfigError(f"--plugin {path}: another plugin has the name {place.name}; rename one of them")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--plugin {path}: cannot be read ({error.strerror}); give the path of a file") from error
    module = ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses and pickles look a class up in the module that it names.
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}{_line(error, str(path))}: {_said(error)}") from error
    _digests[place] = hashlib.sha256(source).hexdigest()
    return module


def load_all(paths: Iterable[Path] | None) -> None:
    """Load each of the files in their order: the callback of the option `--plugin`. Raises ConfigError."""
    for path in paths or ():
        load(path)


def digests() -> dict[str, str]:
    """Return the name of each loaded file -> the SHA-256 of what was run."""
    return {path.name: digest for path, digest in _digests.items()}


def place_of(error: BaseException) -> str | None:
    """Return the innermost place of an error in a loaded file, "my.py, line 7", None for an error elsewhere."""
    for path in _digests:
        file = str(sys.modules[_PREFIX + path.stem].__file__)
        if line := _line(error, file):
            return f"{file}{line}"
    return None


def _line(error: BaseException, file: str) -> str:
    """Return ", line 7" for the innermost line of the file in an error's traceback, "" where it has none."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", line {lines[-1]}" if lines else ""


def _said(error: Exception) -> str:
    """Return the message of an error on one line, with its type unless the message is a sentence."""
    said = one_line(error.msg if isinstance(error, SyntaxError) else str(error))
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
