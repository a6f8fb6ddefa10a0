"""Hooks of mkdocs.yml: README.md as the start page, CHANGELOG.md as a page, and links out of docs/ that go somewhere.

Pages link to files of the checkout, as in `../configs/slake.yaml`. The site has copies of these under `files/`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""File of the checkout -> the page that it becomes."""

LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def links_of(text: str) -> set[str]:
    """Return the relative targets of the links and images of a page, without anchors; code is left out."""
    return {found[1] for found in LINK.findall(FENCE.sub("", text))}


def place_of(target: str) -> str:
    """Return where a file, given relative to the checkout, is in the site. Raises PluginError if there is none."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if not (ROOT / target).is_file():
        raise PluginError(f"{target}: a page links to it, and the checkout has no such file")
    return f"files/{target}"


def relinked(text: str, source: str, page: str) -> str:
    """Return the text of the file `source` (relative to the checkout) with its links as they are seen from `page`."""

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        place = posixpath.relpath(place_of(target), posixpath.dirname(page) or ".")
        return f"{found[1]}{place}{found[3] or ''}{found[4]}"

    parts = re.split(f"({FENCE.pattern})", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(moved, part) for part in parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`, and copies of the files that pages link to."""
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
    sources |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=relinked(sources[name], name, page)))
    linked = {
        posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        for name, text in sources.items()
        for link in links_of(text)
    }
    for target in sorted(linked):
        place = place_of(target)
        if place.startswith("files/"):
            files.append(File.generated(config, place, content=(ROOT / target).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of pages of docs/ that lead out of it."""
    name = page.file.src_uri
    if name in PAGES.values():
        return markdown
    source = name.removeprefix("files/") if name.startswith("files/") else f"docs/{name}"
    return relinked(markdown, source, name)
