"""Real files that pydicom and nibabel ship, and what tests make of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
NIFTI = Path(nibabel.__file__).parent / "tests" / "data"
MONOCHROME1 = DICOM / "dicomdirtests" / "77654033" / "CR1" / "6154"


def changed(name: str | Path, drop: tuple[str, ...] = (), **tags: Any) -> bytes:
    """The bytes of a DICOM file of pydicom with some tags replaced or left out."""
    dataset = pydicom.dcmread(DICOM / name)
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    for tag in drop:
        delattr(dataset, tag)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    """The bytes of a NIfTI-1 volume."""
    return nibabel.Nifti1Image(values, affine).to_bytes()
