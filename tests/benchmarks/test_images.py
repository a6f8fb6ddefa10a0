"""Every form of an image is found, and no name leads out of the release."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from PIL import Image
from releases import pack, picture, put, shade

from mm_spine.benchmarks.images import Archive, ImageFinder
from mm_spine.processors.vision import BadQuestion, open_image


def test_every_form_of_an_image_is_one(tmp_path: Path) -> None:
    images = ImageFinder(tmp_path, (".",))
    noise = os.urandom(3000)
    text = base64.b64encode(noise).decode()
    assert images({"bytes": noise, "path": "x.png"}) == images(noise) == images(text) == noise
    assert images(f"data:image/png;base64,{text[:76]}\n{text[76:]}") == noise
    assert shade(images(Image.new("RGB", (2, 2), (9, 0, 0)))) == 9
    put(tmp_path, {"a.png": picture(3)})
    assert images({"bytes": None, "path": "a.png"}) == images("./a.png") == tmp_path / "a.png"
    for nothing in (None, "", "  ", 5, {}, []):
        with pytest.raises(ValueError, match="no image: found"):
            images(nothing)


def test_an_absent_image_is_the_path_where_it_should_be(tmp_path: Path) -> None:
    pack(tmp_path / "imgs.zip", {"imgs/a.png": picture(1)})
    assert ImageFinder(tmp_path, ("imgs", "imgs.zip"))("b/gone.png") == tmp_path / "b" / "gone.png"


def test_the_name_may_or_may_not_start_with_the_folder_it_is_in(tmp_path: Path) -> None:
    pack(put(tmp_path, {"flat/x.png": picture(1)}) / "imgs.zip", {"y.png": picture(2)})
    images = ImageFinder(tmp_path, ("flat", "imgs.zip"))
    assert [shade(images(name)) for name in ("x.png", "flat/x.png", "y.png", "imgs/y.png")] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "name", ["../secret.png", "imgs/../../secret.png", "/etc/hostname", "imgs/link.png", "up/secret.png"]
)
def test_no_name_and_no_link_leads_out(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "release", {"imgs/a.png": picture(1)})
    put(tmp_path, {"secret.png": picture(2)})
    os.symlink(tmp_path / "secret.png", folder / "imgs" / "link.png")
    os.symlink(tmp_path, folder / "up")
    with pytest.raises(ValueError, match="leaves the folder|link out of"):
        ImageFinder(folder, (".", "imgs"))(name)


def test_an_ambiguous_name_in_an_archive_is_refused(tmp_path: Path) -> None:
    names = {"a/x.png": picture(1), "b/x.png": picture(2), "y.png": picture(3), "b/y.png": picture(4)}
    images = ImageFinder(pack(tmp_path / "imgs.zip", names).parent, ("imgs.zip",))
    assert shade(images("b/x.png")) == 2 and shade(images("y.png")) == 3
    with pytest.raises(ValueError, match="may be a/x.png or b/x.png in imgs.zip"):
        images("x.png")


def test_a_damaged_member_is_named_when_it_is_opened(tmp_path: Path) -> None:
    image = ImageFinder(pack(tmp_path / "imgs.zip", {"a/x.png": picture(1)[:40]}).parent, ("imgs.zip",))("a/x.png")
    with pytest.raises(BadQuestion, match=r"q7: cannot read image a/x\.png in .*imgs\.zip: damaged"):
        open_image(image, "q7")


def test_a_member_that_unpacks_too_large_and_a_broken_archive_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_spine.benchmarks.images.MEMBER_LIMIT", 50)
    archive = Archive(pack(tmp_path / "imgs.zip", {"a.png": bytes(51), "b.png": bytes(50)}))
    member, small = archive.find("a.png"), archive.find("b.png")
    assert member is not None and small is not None and small.read_bytes() == bytes(50)
    with pytest.raises(ValueError, match="a.png in .*imgs.zip unpacks to 51 bytes, the limit is 50"):
        member.read_bytes()
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="broken.zip: not a zip archive"):
        ImageFinder(tmp_path, ("broken.zip",))("a.png")
