"""Slices of NIfTI volumes, upright whatever the order in which voxels are stored."""

from __future__ import annotations

import gzip
import sys
from itertools import permutations, product
from typing import Any

import nibabel
import numpy as np
import pytest
from scans import NIFTI, nifti

from mm_spine.processors import nifti as module
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImagePart

# (x, y, z) in RAS+: every voxel has its own value.
SHAPE = (4, 5, 6)
VALUES = np.arange(120, dtype=np.int16).reshape(SHAPE)
WINDOW = "window=60:120"


def greys(image: Any, how: str) -> np.ndarray:
    return np.asarray(open_image(ImagePart(image, how), "q"))[..., 0].astype(int)


def shown(plane: np.ndarray) -> np.ndarray:
    """An (across, up) plane as rows from the top, the high end of the first axis at the left."""
    return np.rint(255 * np.clip(plane.T[::-1, ::-1] / 120, 0, 1)).astype(int)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_any_orientation_is_shown_alike(order: tuple[int, int, int], signs: tuple[int, int, int]) -> None:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    stored = VALUES.transpose(order)
    for source, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, source] = sign
        stored = np.flip(stored, source) if sign < 0 else stored
    file = nifti(np.ascontiguousarray(stored), affine)
    assert (greys(file, WINDOW) == shown(VALUES[:, :, 3])).all()
    assert (greys(file, f"axis=0,slice=1,{WINDOW}") == shown(VALUES[1])).all()
    assert (greys(file, f"axis=1,4,{WINDOW}") == shown(VALUES[:, 4])).all()


def test_the_real_files_agree_with_nibabel() -> None:
    path = NIFTI / "anatomical.nii"
    volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    plane = volume[:, :, volume.shape[2] // 2]
    low, high = np.percentile(plane, (1, 99))
    want = 255 * np.clip((plane.T[::-1, ::-1] - low) / (high - low), 0, 1)
    assert np.abs(np.asarray(open_image(path, "q"))[..., 0] - want).max() <= 1


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"])
def test_time_series_show_the_first_point_or_the_chosen_one(name: str) -> None:
    first, second = greys(NIFTI / name, "frame=1"), greys(NIFTI / name, "frame=2")
    assert (np.asarray(open_image(NIFTI / name, "q"))[..., 0] == first).all() and (first != second).any()


def test_voxels_become_square() -> None:
    file = nifti(VALUES, np.diag([1, 1, 3, 1]))
    assert open_image(file, "q").size == (4, 5) and greys(file, "axis=1").shape == (18, 4)


def test_a_grid_shares_one_window() -> None:
    grid = greys(nifti(VALUES, np.eye(4)), f"grid=2x3,{WINDOW}")
    assert grid.shape == (10, 12) and (grid[5:, 8:] == shown(VALUES[:, :, 5])).all()


@pytest.mark.parametrize(
    ("file", "how", "words"),
    [
        (nifti(VALUES, np.eye(4)), "slice=6", "no slice 6 on axis 2; give one from 0 to 5"),
        (nifti(VALUES, np.eye(4)), "frame=2", "no frame 2; give one from 1 to 1"),
        (nifti(VALUES, np.eye(4))[:400], "window=1:2", "damaged or truncated; fetch it again"),
        (gzip.compress(nifti(VALUES, np.eye(4)))[:-20], "window=1:2", "damaged or truncated; fetch it again"),
    ],
    ids=["slice", "time", "short", "short gzip"],
)
def test_a_bad_one_says_why(file: bytes, how: str, words: str) -> None:
    with pytest.raises(BadQuestion, match=words):
        greys(file, how)


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VOLUME_LIMIT", 500)
    with pytest.raises(BadQuestion, match="unpacks to more than 500 bytes"):
        open_image(gzip.compress(nifti(VALUES, np.eye(4))), "q")


def test_without_nibabel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(BadQuestion, match=r'pip install "mm-spine\[medical\]"'):
        open_image(NIFTI / "anatomical.nii", "q")
