"""Image features, computed once per distinct image: with a frozen tower they are constants of the run.

They are kept in memory, and in files that other runs and other ranks may share. Both have a byte budget and drop what
was used least recently. What was dropped is encoded again when it is next needed, to the same bits.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mm_spine.config import CacheConfig
from mm_spine.policy.families import find_mergers
from mm_spine.processors.chat import EncodedImage

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key. Raise it when the files or what they hold change."""

FOLDER = "image-features"
"""Folder inside `cache.folder`. Only files named by this module are counted or deleted in it."""

SHARERS = 8
"""How many processes may fill one folder between two looks at its size without exceeding the budget together."""

STALE = 3600.0
"""Seconds after which a file that is still being written counts as left by a crash."""

_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_ASIDE = re.compile(_NAME.pattern + r"\.[0-9a-f]{32}\.writing")


class Features(NamedTuple):
    """The tower's features of images of I tokens: `final_ID`, and (I, D) for each DeepStack layer, if there are any."""

    final_ID: Tensor
    deepstack: tuple[Tensor, ...] = ()

    @property
    def wide_IF(self) -> Tensor:
        """All features side by side, (I, D x (1 + layers))."""
        return torch.cat((self.final_ID, *self.deepstack), dim=-1) if self.deepstack else self.final_ID

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.final_ID, *self.deepstack))

    def to(self, device: torch.device) -> Features:
        """Return the same bits on `device`."""
        return Features(self.final_ID.to(device), tuple(layer.to(device) for layer in self.deepstack))


@dataclass(frozen=True)
class CacheUse:
    """Look-ups that memory answered (`hits`) or not (`misses`: a file or a tower run did), and bytes held now."""

    hits: int = 0
    misses: int = 0
    disk_hits: int = 0
    tower_runs: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


def over_ranks(uses: Sequence[CacheUse]) -> CacheUse:
    """Return the sums over ranks."""
    # Of the bytes on disk the largest counts, because the ranks of a machine share its folder.
    names = ("hits", "misses", "disk_hits", "tower_runs", "memory_bytes")
    sums = {name: sum(getattr(use, name) for use in uses) for name in names}
    return CacheUse(**sums, disk_bytes=max(use.disk_bytes for use in uses))


class ImageCache:
    """Features by the hash of an image's processed patches.

    `train` names the tower's mergers that train: the cache then holds what enters them, the patches of a token side by
    side. `checksum` returns the checksum of the tower's weights; it is called once, and only if there is a folder.
    `width` is that of an image token in the text model.
    """

    # The tower runs on one image at a time, because its rows are not bit-equal to the same rows in a larger batch.

    def __init__(
        self,
        tower: Any,
        train: Sequence[str] = (),
        config: CacheConfig | None = None,
        checksum: Callable[[], str] = lambda: "",
        width: int = 0,
    ) -> None:
        config = config or CacheConfig()
        self._tower = tower
        self._train = tuple(train)
        self._checksum = checksum
        self._width = width
        self._memory = _Memory(int(config.memory_gb * 1e9), warn=config.folder is None)
        self._disk = None if config.folder is None else _Disk(config.folder / FOLDER, int(config.disk_gb * 1e9))
        self.hits = self.misses = self.disk_hits = self.tower_runs = 0

    def features(self, image: EncodedImage) -> Tensor:
        """Return the final features (image tokens, width) of `image`, on the tower's device, without gradient."""
        return self.entry(image).final_ID

    def entry(self, image: EncodedImage) -> Features:
        """Return all features of `image`, on the tower's device, without gradient."""
        return self._get(image.key, lambda: {image.key: image})

    def joined(self, keys: Sequence[str], images: Callable[[], Sequence[EncodedImage]]) -> Features:
        """Return the features of several images in order. `images` reads them again if one has been dropped."""
        again = cache(lambda: {image.key: image for image in images()})
        parts = [self._get(key, again) for key in keys] or [self._nothing()]
        layers = zip(*(part.deepstack for part in parts), strict=True)
        return Features(torch.cat([part.final_ID for part in parts]), tuple(torch.cat(layer) for layer in layers))

    def use(self) -> CacheUse:
        """Return what the cache did so far on this rank, and what it holds."""
        disk = 0 if self._disk is None else self._disk.nbytes()
        return CacheUse(self.hits, self.misses, self.disk_hits, self.tower_runs, self._memory.nbytes, disk)

    def _get(self, key: str, images: Callable[[], Mapping[str, EncodedImage]]) -> Features:
        found = self._memory.get(key)
        if found is not None:
            self.hits += 1
        else:
            self.misses += 1
            found = self._from_disk(key) or self._from_tower(images()[key])
            self._memory.put(key, found)
        return found.to(self._tower.device)

    def _from_disk(self, key: str) -> Features | None:
        found = None if self._disk is None else self._disk.get(self._file_key(key))
        self.disk_hits += found is not None
        return found

    @torch.no_grad()
    def _from_tower(self, image: EncodedImage) -> Features:
        self.tower_runs += 1
        pixels = image.pixel_values.to(self._tower.device, self._tower.dtype)
        grid = image.grid_thw[None].to(self._tower.device)
        with self._without_mergers():
            output = self._tower(pixels, grid_thw=grid)
        deepstack = tuple(getattr(output, "deepstack_features", None) or ())
        made = Features(output.pooler_output.detach(), deepstack).to(torch.device("cpu"))
        if self._disk is not None:
            self._disk.put(self._file_key(image.key), made)
        return made

    def _nothing(self) -> Features:
        """Return the features of no image, in shapes that can be joined with others."""
        if self._tower is None:
            return Features(torch.zeros(0, 0))
        width = self._tower.get_submodule(self._train[0]).hidden_size if self._train else self._width
        none = torch.zeros(0, width, dtype=self._tower.dtype, device=self._tower.device)
        layers = len(getattr(self._tower, "deepstack_merger_list", ()))
        return Features(none, (none,) * layers)

    def _file_key(self, key: str) -> str:
        return hashlib.sha256(f"{self._stamp} {key}".encode()).hexdigest()

    @cached_property
    def _stamp(self) -> str:
        """What the bits depend on apart from the patches: the weights, and the software and device that run them."""
        device = self._tower.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        kernel = self._tower.config._attn_implementation
        # Files of other kernels are those of before, when there was one only.
        name = f"{name} {kernel}" if "flash" in kernel else name
        software = (torch.__version__, version("transformers"))
        return repr((FORMAT, self._checksum(), str(self._tower.dtype), self._train, *software, name))

    @contextmanager
    def _without_mergers(self) -> Iterator[None]:
        mergers = find_mergers(self._tower, self._train)
        for name, merger in mergers.items():
            self._tower.set_submodule(name, _SideBySide(merger.hidden_size))
        try:
            yield
        finally:
            for name, merger in mergers.items():
                self._tower.set_submodule(name, merger)


class _SideBySide(nn.Module):
    """Stands in for a merger: lays the patches that it would merge side by side, (patches, h) -> (tokens, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, patches: Tensor) -> Tensor:
        return patches.view(-1, self.width)


class _Memory:
    """Entries in the host's memory, at most `budget` bytes in all."""

    def __init__(self, budget: int, warn: bool) -> None:
        self._budget, self._warn = budget, warn
        self._entries: OrderedDict[str, Features] = OrderedDict()
        self.nbytes = 0

    def get(self, key: str) -> Features | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, features: Features) -> None:
        self._entries[key] = features
        self.nbytes += features.nbytes
        while self.nbytes > self._budget:
            _, dropped = self._entries.popitem(last=False)
            self.nbytes -= dropped.nbytes
            if self._warn:
                log.warning(
                    "image features no longer fit in cache.memory_gb=%g: the tower runs again for those dropped; "
                    "raise it, or set cache.folder",
                    self._budget / 1e9,
                )
                self._warn = False


class _Disk:
    """Entries as files, at most `budget` bytes in all, shared with other processes.

    A file that cannot be read is a miss. A disk that fails costs tower runs, and does not stop the run.
    """

    # No lock is needed. A file is written under another name and renamed, so it is whole or absent. Equal keys have
    # equal bytes, so it does not matter who writes last. Processes that make room at the same time delete the same
    # oldest files.

    def __init__(self, folder: Path, budget: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._budget = folder, budget
        # Bytes that may be written before the folder's size is read again.
        self._room = 0
        self._warned = False
        self._clear_stale()

    def get(self, key: str) -> Features | None:
        """Return the entry, None if it is absent or damaged."""
        path = self._path(key)
        try:
            found = unpack(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            log.warning("%s: not a whole file of image features (%s); it is made again", path, error)
            return None
        # Another process may have deleted the file, or another user may own it. It was read all the same.
        with suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: str, features: Features) -> None:
        """Write the entry, unless it alone exceeds the budget."""
        data = pack(features)
        if len(data) > self._budget:
            return
        aside = self._folder / f"{self._path(key).name}.{uuid4().hex}.writing"
        try:
            if len(data) > self._room:
                self._make_room(len(data))
            try:
                aside.write_bytes(data)
                aside.replace(self._path(key))
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            if not self._warned:
                log.warning("cache.folder: image features cannot be kept in %s (%s)", self._folder, error)
            self._warned = True
        self._room -= len(data)

    def nbytes(self) -> int:
        """Return the bytes of all entries in the folder, of other processes too."""
        return sum(size for _, size, _ in self._files(_NAME))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _make_room(self, needed: int) -> None:
        """Delete the files that were used least recently if `needed` bytes do not fit, down to 7/8 of the budget."""
        files = sorted(self._files(_NAME))
        total = sum(size for _, size, _ in files)
        if total + needed > self._budget:
            for _, size, path in files:
                if total + needed <= self._budget * 7 // 8:
                    break
                path.unlink(missing_ok=True)
                total -= size
        self._room = max((self._budget - total) // SHARERS, needed)

    def _clear_stale(self) -> None:
        now = time.time_ns()
        for used, _, path in self._files(_ASIDE):
            if now - used > STALE * 1e9:
                path.unlink(missing_ok=True)

    def _files(self, name: re.Pattern[str]) -> Iterator[tuple[int, int, Path]]:
        """Yield (last use in ns, bytes, path) of the files called `name`; skip those that are deleted meanwhile."""
        for found in self._folder.iterdir():
            if name.fullmatch(found.name):
                with suppress(FileNotFoundError):
                    stat = found.stat()
                    yield stat.st_mtime_ns, stat.st_size, found


def pack(features: Features) -> bytes:
    """Return a safetensors file with the entry and its digest. Equal entries give equal bytes."""
    tensors = {f"{i}": tensor.contiguous() for i, tensor in enumerate((features.final_ID, *features.deepstack))}
    return save({**tensors, "digest": torch.frombuffer(bytearray(_digest(tensors)), dtype=torch.uint8)})


def unpack(data: bytes) -> Features:
    """Return the entry of a file made by `pack`. Raises SafetensorError, KeyError or ValueError for other bytes."""
    tensors = load(data)
    if bytes(tensors.pop("digest").tolist()) != _digest(tensors):
        raise ValueError("its digest does not match")
    final, *deepstack = (tensors[f"{i}"] for i in range(len(tensors)))
    return Features(final, tuple(deepstack))


def _digest(tensors: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.digest()
