"""Fetch a release from the Hugging Face hub, or find it in the caches of `huggingface_hub` and `datasets`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mm_spine.benchmarks.benchmark import Images, Row, Source
from mm_spine.benchmarks.tables import describe_folder, matching_files
from mm_spine.types import ImageLike

log = logging.getLogger(__name__)

# `fetch_files` tries one pattern after another, so a pattern that matches nothing deserves no warning.
logging.getLogger("huggingface_hub._snapshot_download").addFilter(
    lambda record: not record.getMessage().startswith("No files matched")
)


def fetch_files(source: Source, split: str, hub: str, revision: str) -> tuple[Path, list[Path]]:
    """Fetch the files of `split` that the first matching pattern names, and no others.

    Returns the folder of the snapshot and the files in it. Raises FileNotFoundError where no pattern matches, and the
    errors of `huggingface_hub`.
    """
    folder, failure = None, None
    for pattern in source.patterns(split):
        try:
            folder = _snapshot(hub, revision, [pattern])
        except IncompleteSnapshotError as error:
            # Offline, and the cache lacks the files of this pattern. It may hold those of the next.
            failure = error
        else:
            if files := matching_files(folder, pattern):
                return folder, files
    raise failure or FileNotFoundError(
        f"no file of split {split!r} (looked for {', '.join(source.patterns(split))}); "
        f"{folder} holds {describe_folder(folder) if folder else 'nothing'}"
    )


def fetch_images(source: Source, hub: str, revision: str) -> Path | None:
    """Fetch the image folders and archives of a release; return the folder of the snapshot, or None on failure."""
    patterns = [name for entry in source.images if entry != "." for name in (entry, f"{entry}/*")]
    try:
        return _snapshot(hub, revision, patterns)
    except Exception as error:
        # Whatever failed (HTTP, the cache, the disk), the questions can still be reported without their images.
        log.warning("the images of %s@%s could not be fetched: %s", hub, revision, explain(error))
        return None


def _snapshot(hub: str, revision: str, patterns: list[str]) -> Path:
    fetch = partial(snapshot_download, hub, repo_type="dataset", revision=revision, allow_patterns=patterns)
    try:
        return Path(fetch())
    except Exception as error:
        # `snapshot_download` looks into its cache where nothing answers, but not where it is a proxy that does not.
        if type(error).__name__ != "ProxyError":
            raise
        return Path(fetch(local_files_only=True))


def load_dataset(source: Source, split: str, hub: str, revision: str, offline: bool = False) -> Any:
    """Load `split` with the `datasets` library, which also finds what older versions of it have cached.

    With `offline` only its caches are looked at.
    """
    import datasets

    name = source.hub_split(split)
    with _no_requests() if offline else nullcontext():
        try:
            return datasets.load_dataset(hub, source.config, split=name, revision=revision)
        except ValueError:
            # A copy of the release under another id may have dropped the name of the configuration.
            if hub == source.hub or source.config is None:
                raise
            return datasets.load_dataset(hub, split=name, revision=revision)


@contextmanager
def _no_requests() -> Iterator[None]:
    """Have both libraries make no request during the block, as HF_HUB_OFFLINE does."""
    from datasets import config

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def is_unreachable(error: Exception) -> bool:
    """Return whether an error of `fetch_files` means that the hub gave no answer, or may not be asked."""
    # `datasets` would ask it again, six times in 25 seconds, with a warning each time.
    return isinstance(error, LocalEntryNotFoundError | IncompleteSnapshotError | OfflineModeIsEnabled)


def dataset_rows(dataset: Any) -> Sequence[Row]:
    """Return the rows of a `datasets.Dataset`. Its images stay in the file until they are opened."""
    from mm_spine.benchmarks.arrow import arrow_rows

    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    return arrow_rows(dataset.data.table)


def cached_image(find: Images, value: Any) -> ImageLike:
    """Find an image as `find` does, and also a file that `datasets` has unpacked into its caches.

    `datasets` names such a file by its full path, which `find` refuses.
    """
    from datasets import config

    path = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else None
    if path and Path(path).is_absolute():
        caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
        if any(Path(path).resolve().is_relative_to(Path(cache).resolve()) for cache in caches):
            return Path(path)
    return find(value)


def explain(error: Exception) -> str:
    """Say what an error of the hub means and, where there is something to do about it, what."""
    if isinstance(error, GatedRepoError):
        return "gated; accept its terms on its hub page and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision of it on the hub"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such data set on the hub, or it is private (then set HF_TOKEN)"
    if isinstance(error, IncompleteSnapshotError):
        return "the hub cannot be reached (or HF_HUB_OFFLINE is set), and its copy in the cache lacks the files"
    if isinstance(error.__cause__, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set and it is not in the cache ({constants.HF_HUB_CACHE})"
    if isinstance(error, LocalEntryNotFoundError):
        return f"the hub cannot be reached and it is not in the cache ({constants.HF_HUB_CACHE})"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
