"""Send a model folder to a repository of the Hugging Face hub, private unless said otherwise."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

from mm_spine.policy.errors import ModelError

log = logging.getLogger(__name__)


CARD = "README.md"
"""The file of a model card."""

OWN_TAG = re.compile(r"\A---\n(?:(?!---\n).*\n)*?- mm-spine\n(?:(?!---\n).*\n)*?---\n")
"""The front matter of a card that mm-spine wrote."""


class Pushed(NamedTuple):
    """What was sent: the repository's address, whether only its owner may read it, and file -> size in bytes."""

    url: str
    private: bool
    files: dict[str, int]


def push_folder(folder: Path, repo: str, private: bool = True) -> Pushed:
    """Send every file of `folder` to the model repository `repo` ("name" or "owner/name"), which is made if need be.

    It uses the token of `hf auth login` or HF_TOKEN. Raises ModelError where the folder holds no model, where `repo` is
    public already but `private` is asked for, and where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    sent = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    if "config.json" not in sent:
        raise ModelError(f"{folder}: no config.json there; give a folder that Policy.save or a run (adapted/) wrote")
    who = "private" if private else "PUBLIC"
    listed = ", ".join(f"{name} ({size:,} bytes)" for name, size in sent.items())
    log.info("sending to the %s repository %s: %s", who, repo, listed)
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        # A repository that is there already keeps its visibility, whatever was asked for.
        if private and not api.model_info(url.repo_id).private:
            raise ModelError(
                f"{url.repo_id}: that repository is public already, and nothing was sent; make it private, choose "
                "another name, or give private=False"
            )
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload an adapted model (mm-spine)")
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{repo}: HF_HUB_OFFLINE is set, so nothing was sent; unset it to push") from error
    except ModelError:
        raise
    # Without a network its HTTP client raises errors of its own, which differ between its versions.
    except Exception as error:
        raise ModelError(
            f"{repo}: nothing was sent, or not everything: {error}; `hf auth whoami` shows who is logged in"
        ) from error
    return Pushed(str(url), private, sent)


def own_card(folder: Path) -> str | None:
    """Return the card of a model folder that mm-spine wrote, None for any other: it says nothing of what follows."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if OWN_TAG.match(text) else None


def _files(folder: Path) -> list[Path]:
    # upload_folder leaves .git and .cache/huggingface out.
    hidden = (".git", ".cache")
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in hidden
    )
