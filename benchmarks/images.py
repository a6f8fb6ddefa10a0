"""Find the image that a field of a row means. It is opened later; no name leads out of the release."""

from __future__ import annotations

import base64
import binascii
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL.Image import Image

from mm_spine.types import ImageLike

MEMBER_LIMIT = 256 * 2**20
"""Bytes that one member of a zip archive may unpack to."""

# Text of more characters than this may be an image as base64; no file name is as long, no such image as short.
_BASE64_LENGTH = 1000


@dataclass(frozen=True, eq=False)
class Member:
    """An image in a zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __str__(self) -> str:
        return f"{self.info.filename} in {self.archive.filename}"

    def read_bytes(self) -> bytes:
        """Read the bytes. Raises ValueError where they are more than `MEMBER_LIMIT`."""
        if self.info.file_size > MEMBER_LIMIT:
            size = f"{self.info.file_size:,} bytes, the limit is {MEMBER_LIMIT:,}"
            raise ValueError(f"{self.info.filename} in {self.archive.filename} unpacks to {size}")
        return self.archive.read(self.info)


@dataclass(frozen=True, eq=False)
class Archive:
    """A zip archive. Its members are found by name, with or without the folders above them."""

    path: Path

    @cached_property
    def _file(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{self.path}: not a zip archive that can be read ({error}); fetch it again") from error

    @cached_property
    def _members(self) -> Mapping[str, Sequence[zipfile.ZipInfo]]:
        """Each trailing part of a member's path ("c", "b/c", "a/b/c") -> the members whose path ends with it."""
        members: dict[str, list[zipfile.ZipInfo]] = {}
        for info in self._file.infolist():
            parts = info.filename.split("/")
            if not info.is_dir() and parts[0] != "__MACOSX":
                for start in range(len(parts)):
                    members.setdefault("/".join(parts[start:]), []).append(info)
        return members

    def find(self, name: str) -> Member | None:
        """Return the member whose path is, or ends with, `name`; of several the one in the fewest folders.

        Raises ValueError where two are in equally few.
        """
        found = sorted(self._members.get(name, ()), key=_depth)
        if len(found) > 1 and _depth(found[0]) == _depth(found[1]):
            raise ValueError(f"image {name!r} may be {found[0].filename} or {found[1].filename} in {self.path.name}")
        return Member(self._file, found[0]) if found else None


def _depth(info: zipfile.ZipInfo) -> int:
    return info.filename.count("/")


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of images. No link in it may lead out of `root`."""

    path: Path
    root: Path

    def find(self, name: str) -> Path | None:
        """Return the file of that name, or None. Raises ValueError for a link out of `root` or an impossible name."""
        path = self.path / name
        try:
            there, target = path.is_file(), path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            # The name is too long, holds a null character or half a character, or links lead in a circle.
            why = next((text for name in ("reason", "strerror") if (text := getattr(error, name, None))), error)
            raise ValueError(f"image {name[:80]!r}: no file can have that name ({why}); correct it") from error
        if not target.is_relative_to(self.root):
            raise ValueError(f"image {name!r} is a link out of the folder {self.root}; copy the image into it")
        return path if there else None


@dataclass(frozen=True, eq=False)
class ImageFinder:
    """Finds the images of a release in `folder`. Its folders and archives, `entries`, are searched in that order.

    `fetch` is called once, before the first name is looked up, to fetch them. It returns the folder that it put them
    in, or None for `folder`.
    """

    folder: Path
    entries: tuple[str, ...]
    fetch: Callable[[], Path | None] = lambda: None

    def __call__(self, value: Any) -> ImageLike:
        """Return the image that `value` means: a cell of a table, bytes, base64 text, a decoded image, or a name.

        For a name that is not found, returns the path where the file should be: the question is then counted and
        skipped when it is asked. Raises ValueError where `value` is no image, or a name that leads out of the release.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, Image | bytes) or (hasattr(value, "read_bytes") and not isinstance(value, Path)):
            return value
        if isinstance(value, str | Path) and str(value).strip():
            text = str(value)
            return (_decoded(text) if len(text) > _BASE64_LENGTH else None) or self._find(text)
        raise ValueError(f"no image: found {value!r}")

    def _find(self, name: str) -> ImageLike:
        relative = inside(name)
        names = [relative.as_posix()]
        for entry, place in self._places:
            top, *rest = relative.parts
            # "imgs/a.png" may also be "a.png" in the folder imgs or in imgs.zip.
            tried = [*names, "/".join(rest)] if rest and Path(entry).stem == top else names
            for candidate in tried:
                if found := place.find(candidate):
                    return found
        return self._home / relative

    @cached_property
    def _home(self) -> Path:
        return self.fetch() or self.folder

    @cached_property
    def _places(self) -> list[tuple[str, Folder | Archive]]:
        root = root_of(self._home)
        places: list[tuple[str, Folder | Archive]] = []
        for entry in self.entries:
            path = self._home / entry
            if path.is_dir():
                places.append((entry, Folder(path, root)))
            elif path.is_file():
                places.append((entry, Archive(path)))
        return places


def inside(name: str) -> Path:
    """Return `name` as a relative path. Raises ValueError where it is absolute, holds "..", or is empty."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise ValueError(f"image {name!r} leaves the folder; give a path relative to it, without '..'")
    return relative


def root_of(folder: Path) -> Path:
    """Return the folder that links in `folder` may not lead out of."""
    folder = folder.resolve()
    cache = folder.parent.parent
    # A snapshot in the cache of `huggingface_hub` consists of links into the folder "blobs" beside "snapshots".
    return cache if folder.parent.name == "snapshots" and (cache / "blobs").is_dir() else folder


def _decoded(text: str) -> bytes | None:
    """Return the bytes of base64 text, with or without `data:...;base64,` before it; None for other text."""
    try:
        return base64.b64decode("".join(text.split(";base64,", 1)[-1].split()), validate=True)
    except (binascii.Error, ValueError):
        return None
