"""DICOM as a viewer shows it: windows, MONOCHROME1, frames, colours, compression; no tag of a patient leaves it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from scans import DICOM, MONOCHROME1, changed

from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import ImagePart


def greys(image: Any, how: str = "") -> np.ndarray:
    """(H, W) greys as the model sees them."""
    values = np.asarray(open_image(ImagePart(image, how) if how else image, "q"))
    assert (values == values[..., :1]).all()
    return values[..., 0].astype(int)


def linear(name: str, centre: float, width: float) -> np.ndarray:
    """The window of PS3.3 C.11.2.1.2.1 over rescaled values, written out."""
    tags = pydicom.dcmread(DICOM / name)
    values = pixel_array(DICOM / name) * float(tags.get("RescaleSlope", 1)) + float(tags.get("RescaleIntercept", 0))
    return np.rint(255 * np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)).astype(int)


def test_the_window_of_the_tags_is_used() -> None:
    assert pydicom.dcmread(DICOM / "MR_small.dcm").WindowCenter == 600
    assert (greys(DICOM / "MR_small.dcm") == linear("MR_small.dcm", 600, 1600)).all()


@pytest.mark.parametrize("how", ["window=40:400", "window=lung"])
def test_a_chosen_window_is_in_hounsfield_units(how: str) -> None:
    tags = pydicom.dcmread(DICOM / "CT_small.dcm")
    assert tags.RescaleIntercept == -1024
    units = pixel_array(DICOM / "CT_small.dcm") - 1024.0
    centre, width = (40, 400) if "40" in how else (-600, 1500)
    want = np.rint(255 * np.clip((units - centre) / width + 0.5, 0, 1))
    assert (greys(DICOM / "CT_small.dcm", how) == want).all() and 0 < want.mean() < 255


def test_a_window_named_by_the_tags_goes_before_the_table() -> None:
    file = changed(
        "CT_small.dcm", WindowCenter=[0, 700], WindowWidth=[10, 90], WindowCenterWidthExplanation=["SOFT", "LUNG"]
    )
    assert (greys(file, "window=lung") == linear("CT_small.dcm", 700, 90)).all()
    assert (greys(file) == linear("CT_small.dcm", 0, 10)).all()


def test_a_ct_window_is_refused_for_another_modality() -> None:
    with pytest.raises(BadQuestion, match="window 'lung' is one of CT and this is MR; give numbers"):
        open_image(f"{DICOM / 'MR_small.dcm'}#window=lung", "q")


def test_without_a_window_percentiles_of_what_is_no_padding() -> None:
    plain = greys(DICOM / "CT_small.dcm")
    low, high = np.percentile(pixel_array(DICOM / "CT_small.dcm"), (1, 99))
    want = np.clip((pixel_array(DICOM / "CT_small.dcm") - low) / (high - low), 0, 1) * 255
    assert np.abs(plain - want).max() <= 1
    values = pixel_array(DICOM / "CT_small.dcm").copy()
    values[:64] = -2000
    padded = greys(changed("CT_small.dcm", PixelData=values.tobytes(), PixelPaddingValue=-2000))
    not_said = greys(changed("CT_small.dcm", PixelData=values.tobytes(), PixelPaddingValue=-2001))
    assert padded[:64].max() == 0 and padded[64:].std() > 3 * not_said[64:].std()


def test_monochrome1_is_inverted() -> None:
    assert pydicom.dcmread(MONOCHROME1).PhotometricInterpretation == "MONOCHROME1"
    as_is = greys(changed(MONOCHROME1, PhotometricInterpretation="MONOCHROME2"))
    assert (greys(MONOCHROME1) == 255 - as_is).all() and as_is.std() > 0


def test_a_voi_look_up_table_goes_before_the_window() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], (65535 - 16 * np.arange(4096)).astype("<u2").tobytes()
    file = changed("MR_small.dcm", VOILUTSequence=[table])
    assert np.abs(greys(file) - (255 - pixel_array(DICOM / "MR_small.dcm") / 16.06)).max() <= 1


@pytest.mark.parametrize("kind", ["RLE", "implicit", "expb", "bigendian", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_every_lossless_syntax_gives_the_same_picture(kind: str) -> None:
    assert (greys(DICOM / f"MR_small_{kind}.dcm") == greys(DICOM / "MR_small.dcm")).all()


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_dcmtk", "SC_rgb_dcmtk_+eb+cy+np", "SC_ybr_full_422_uncompressed"]
)
def test_colours_of_any_coding_are_rgb(name: str) -> None:
    found = open_image(DICOM / f"{name}.dcm", "q")
    want = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    for row, colour in zip((5, 25, 45), want, strict=True):
        assert np.abs(np.subtract(found.getpixel((50, row)), colour)).max() <= 6


def test_a_palette_is_looked_up() -> None:
    tags = pydicom.dcmread(DICOM / "examples_palette.dcm")
    red = np.frombuffer(tags.RedPaletteColorLookupTableData, "<u2")[tags.pixel_array]
    found = np.asarray(open_image(DICOM / "examples_palette.dcm", "q"))
    assert found.shape == (350, 800, 3) and np.abs(found[..., 0] - red / 257.0).max() <= 1


def test_frames_by_number_by_share_and_as_a_grid() -> None:
    path = DICOM / "rtdose.dcm"
    values = pixel_array(path)
    assert len(values) == 15
    # The same window for all, so that frames can be compared.
    window = f"window={values.max() * 0.5}:{values.max()}"
    scale = float(pydicom.dcmread(path).get("RescaleSlope", 1))
    assert scale == 1
    want = np.rint(255 * np.clip(values / values.max(), 0, 1)).astype(int)
    assert (greys(path, f"3,{window}") == want[2]).all()
    assert (greys(path, window) == want[7]).all()
    assert (greys(path, f"frame=2/3,{window}") == want[7]).all()
    grid = greys(path, f"grid=3x5,{window}")
    assert grid.shape == (30, 50) and (grid[10:20, 20:30] == want[7]).all() and (grid[:10, :10] == want[0]).all()
    with pytest.raises(BadQuestion, match="it has no frame 16; give one from 1 to 15"):
        open_image(f"{path}#16", "q")


def test_the_window_of_a_frame_is_in_its_functional_group() -> None:
    voi, group = Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 600, 1600
    group.FrameVOILUTSequence = [voi]
    file = changed("MR_small.dcm", drop=("WindowCenter", "WindowWidth"), SharedFunctionalGroupsSequence=[group])
    assert (greys(file) == greys(DICOM / "MR_small.dcm")).all()


def test_oblong_pixels_become_square() -> None:
    assert open_image(changed("MR_small.dcm", PixelSpacing=[1, 0.5]), "q").size == (64, 128)
    assert open_image(changed("MR_small.dcm", PixelSpacing=[1, 0.0001]), "q").size == (64, 64)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (DICOM / "MR_truncated.dcm", "damaged or truncated; fetch it again or export it anew"),
        (DICOM / "JPGExtended.dcm", "its compression cannot be decoded"),
        (DICOM / "reportsi.dcm", "a DICOM file without a picture; leave it out"),
        (DICOM / "badVR.dcm", "damaged or truncated"),
        (changed("MR_small.dcm", Rows=60000, Columns=60000), "it is 60000x60000; allowed are 1 to 64,000,000 pixels"),
    ],
    ids=["truncated", "12-bit JPEG", "report", "bad number", "too large"],
)
def test_a_bad_file_says_why(file: Path | bytes, words: str) -> None:
    with pytest.raises(BadQuestion, match=words):
        open_image(file, "q")


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(BadQuestion, match=r'pip install "mm-spine\[medical\]"'):
        open_image(DICOM / "MR_small.dcm", "q")


def test_no_tag_leaves_the_file(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither in the picture, nor in what is said of a damaged file whose bad tags hold a name."""
    name = "Zebedee^Quixotic"
    found = open_image(changed("MR_small.dcm", PatientName=name, PatientID=name), "q")
    assert not found.info
    file = io.BytesIO()
    found.save(file, "JPEG", comment=None)
    assert b"Zebedee" not in file.getvalue()
    bad = changed("MR_small.dcm", PatientName=name).replace(b"DS\x04\x001600", b"DS\x04\x00Zebe")
    with pytest.raises(BadQuestion) as raised:
        open_image(bad, "q")
    chain = [raised.value, raised.value.__cause__, raised.value.__cause__ and raised.value.__cause__.__cause__]
    said = " ".join(map(str, [*chain, caplog.text, *capfd.readouterr()]))
    assert "damaged" in said and "Zebe" not in said


def test_the_comment_of_a_jpeg_stays_in_it() -> None:
    file = io.BytesIO()
    Image.new("RGB", (28, 28)).save(file, "JPEG", comment=b"Zebedee Quixotic")
    assert not open_image(file.getvalue(), "q").info
