"""Encodings that hospitals' files were reported with: each is shown as viewers show it. See also `test_codecs.py`."""

import csv
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset

from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.decode import decode, read_header, sniff
from pipelines.decoding.dicom import read_grey
from pipelines.decoding.film import ReadSettings, read_film
from pipelines.errors import RejectedScanError, ScanError, UnreadableScanError
from pipelines.storage import open_store
from tests.pipelines.decoding.films import compressed, dataset, dicom, encode, ramp, saved

FILM = ramp()
TWELVE = FILM.astype(np.uint16) * 16
WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
BITS: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
EXACT = Preprocessing(size=64, decode="exact")


def grey(data: bytes) -> npt.NDArray[np.int16]:
    return read_grey(data)[0].astype(np.int16)


def close(data: bytes, wanted: npt.NDArray[np.uint8] = FILM, tolerance: int = 1) -> bool:
    return int(np.abs(grey(data) - wanted).max()) <= tolerance


def texts(data: bytes, **values: str) -> bytes:
    """The file with these texts in place of its decimal strings of the same length."""
    for old, new in values.items():
        assert data.count(old.encode()) == 1
        data = data.replace(old.encode(), new.encode())
    return data


def lut(entries: npt.NDArray[Any], bits: int, *, first: int = 0, vr: str = "OW") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first % 65536, bits])
    data = entries.tobytes()
    item.add_new("LUTData", "OW", data + bytes(len(data) % 2))
    if vr == "US":
        words = np.frombuffer(data + bytes(len(data) % 2), "<u2").tolist()
        item.add_new("LUTData", "US", words)
    return item


def window_of(center: str, width: str) -> bytes:
    """A film whose window is written as these texts, which pydicom would not write."""
    file = dataset(TWELVE, **BITS)
    file.add_new("WindowCenter", "LO", center)
    file.add_new("WindowWidth", "LO", width)
    data = saved(file)
    for tag in (b"\x28\0\x50\x10", b"\x28\0\x51\x10"):
        data = data.replace(tag + b"LO", tag + b"DS")
    return data


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("2048,0", "4096,0"),
        ("\\2048", "\\4096"),
        ("2048\\100", "4096\\7"),
        ("abc\\2048", "4096\\4096"),
        ("2048 ", " 4096"),
        ("2048\\9\\9", "4096"),
        ("100\\2048", "0\\4096"),
        ("2.048E3", "+4096."),
    ],
)
def test_the_first_window_of_usable_numbers_counts(center: str, width: str) -> None:
    assert close(window_of(center, width))


@pytest.mark.parametrize(
    ("center", "width"), [("wide", "open"), ("", ""), ("NaN", "4096"), ("2048", "0"), ("2048", "-4"), ("1_0", "2_0")]
)
def test_a_window_that_is_none_counts_as_absent(center: str, width: str) -> None:
    assert (grey(window_of(center, width)) == grey(dicom(TWELVE, **BITS))).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT"])
def test_windows_narrower_than_one(function: str) -> None:
    tags = {"RescaleSlope": "0.000244200", "RescaleIntercept": "0", "WindowCenter": "0.5", "WindowWidth": "0.999"}
    assert close(dicom(TWELVE, **BITS, **tags, VOILUTFunction=function))


@pytest.mark.parametrize("slope", ["0", "n.a.", "", "nan"])
def test_a_slope_that_is_none_counts_as_absent(slope: str) -> None:
    file = dataset(TWELVE, **BITS, **WINDOW)
    file.add_new("RescaleIntercept", "DS", "-700")
    file.add_new("RescaleSlope", "LO", slope)
    assert close(saved(file).replace(b"\x28\0\x53\x10LO", b"\x28\0\x53\x10DS"))


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_a_lookup_table_is_scaled_by_what_its_entries_fill(vr: str) -> None:
    shades = np.arange(4096, dtype=np.uint16)
    assert close(dicom(TWELVE, **BITS, VOILUTSequence=[lut(shades, 16, vr=vr)]))
    eight = (np.arange(4096) >> 4).astype(np.uint8)
    assert close(dicom(TWELVE, **BITS, VOILUTSequence=[lut(eight, 8, vr=vr)]))


def test_a_lookup_table_of_a_big_endian_file() -> None:
    file = dataset(TWELVE.astype(">u2"), **BITS)
    shades = np.arange(4096, dtype=np.uint16)
    item = lut(shades, 12)
    item.LUTData = shades.astype(">u2").tobytes()
    file.VOILUTSequence = [item]
    file.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    out = BytesIO()
    dcmwrite(out, file, implicit_vr=False, little_endian=False, force_encoding=True)
    assert close(out.getvalue())


def test_a_lookup_table_of_signed_values() -> None:
    signed = TWELVE.astype(np.int16) - 2048
    item = lut(np.arange(4096, dtype=np.uint16), 12, first=-2048)
    assert close(dicom(signed, PixelRepresentation=1, ModalityLUTSequence=[item], **WINDOW))


def test_an_empty_lookup_table_leaves_the_window() -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", b"")
    assert close(dicom(TWELVE, **BITS, **WINDOW, VOILUTSequence=[item]))


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (65535, {"PixelPaddingValue": 65535}),
        (60000, {"PixelPaddingValue": 59990, "PixelPaddingRangeLimit": 65535}),
        (5, {"PixelPaddingValue": 5}),
    ],
)
def test_padding_takes_no_part_in_the_contrast(padding: int, tags: dict[str, int]) -> None:
    padded = TWELVE + np.uint16(1000)
    padded[:, :30] = padding
    shown = grey(dicom(padded, **tags))[:, 30:]
    alone = grey(dicom(padded[:, 30:]))
    assert np.abs(shown - alone).max() <= 1


def test_signed_padding() -> None:
    padded = TWELVE.astype(np.int16) - 100
    padded[:, :30] = -32768
    file = dataset(padded, PixelRepresentation=1)
    file.add_new("PixelPaddingValue", "SS", -32768)
    assert np.abs(grey(saved(file))[:, 30:] - grey(dicom(padded[:, 30:], PixelRepresentation=1))).max() <= 1


@given(st.integers(0, 4))
def test_stored_bits_above_the_lowest_are_shifted_down(shift: int) -> None:
    stored = (TWELVE << shift) | np.uint16((1 << shift) - 1)
    assert close(dicom(stored, BitsStored=12, HighBit=11 + shift, **WINDOW))


@pytest.mark.parametrize("name", ["SamplesPerPixel", "PixelRepresentation", "HighBit", "PhotometricInterpretation"])
def test_what_a_header_forgot_has_its_usual_value(name: str) -> None:
    file = dataset(TWELVE, BitsStored=12, HighBit=11, **WINDOW)
    delattr(file, name)
    assert close(saved(file))


def test_an_empty_transfer_syntax_is_none() -> None:
    data = dicom(TWELVE, **BITS, **WINDOW)
    assert close(data.replace(b"1.2.840.10008.1.2.1\0", bytes(20)))


def test_a_syntax_named_in_the_bytes_of_a_film_is_none() -> None:
    deflated = uid.DeflatedExplicitVRLittleEndian.encode()
    assert close(dicom(TWELVE, **BITS, **WINDOW, StudyInstanceUID=deflated.decode()))


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0"])
def test_dicom_wins_over_what_stands_in_its_preamble(magic: bytes) -> None:
    data = magic + dicom(TWELVE, **BITS, **WINDOW)[len(magic) :]
    assert sniff(data) == "dicom"
    assert close(data)


RGB = np.stack([FILM] * 3, axis=-1)


@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (RGB, {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}),
        (np.moveaxis(RGB, -1, 0).copy(), {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}),
        (np.stack([FILM, FILM * 0 + 128, FILM * 0 + 128], axis=-1), {"PhotometricInterpretation": "YBR_FULL"}),
    ],
    ids=["rgb", "rgb planes", "ybr"],
)
def test_colour_scans_are_shown_by_their_luminance(pixels: npt.NDArray[np.uint8], tags: dict[str, Any]) -> None:
    assert close(dicom(pixels, Rows=80, Columns=96, SamplesPerPixel=3, **tags))


def test_luminance_weighs_the_colours() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]] * 2, dtype=np.uint8)
    shown = grey(dicom(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    assert shown[0].tolist() == [76, 150, 29, 255]


def test_halved_colours() -> None:
    pairs = np.full((80, 48, 4), 128, dtype=np.uint8)
    pairs[..., :2] = FILM.reshape(80, 48, 2)
    tags = {"Rows": 80, "Columns": 96, "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}
    assert close(dicom(pairs.reshape(80, 192), **tags))


def test_a_palette() -> None:
    file = dataset(255 - FILM, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        file.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        shades = (np.arange(255, -1, -1, dtype=np.uint16) * 257).tobytes()
        file.add_new(f"{colour}PaletteColorLookupTableData", "OW", shades)
    assert close(saved(file))


@pytest.mark.parametrize("lossless", [False, True])
def test_colour_jpeg_in_dicom(lossless: bool) -> None:
    frame = imagecodecs.jpeg8_encode(RGB, level=98, lossless=lossless)
    tags = {"PhotometricInterpretation": "RGB" if lossless else "YBR_FULL_422", "PlanarConfiguration": 0}
    file = dataset(RGB, SamplesPerPixel=3, **tags)
    assert close(compressed(file, frame, uid.JPEGLosslessSV1 if lossless else uid.JPEGBaseline8Bit), tolerance=4)


def test_one_of_several_frames_is_not_ours_to_choose() -> None:
    two = np.stack([FILM, FILM])
    with pytest.raises(UnreadableScanError, match=r"unsupported \(2 frames\)"):
        read_grey(dicom(two, Rows=80, Columns=96, NumberOfFrames=2))


@pytest.mark.parametrize(
    ("sop_class", "tags", "reason", "detail"),
    [
        ("1.2.840.10008.5.1.4.1.1.88.11", {}, Reason.NOT_IMAGE, "Basic Text SR"),
        ("1.2.840.10008.5.1.4.1.1.11.1", {}, Reason.NOT_IMAGE, "Grayscale Softcopy Presentation State"),
        ("1.2.840.10008.5.1.4.1.1.104.1", {}, Reason.NOT_IMAGE, "Encapsulated PDF"),
        ("1.2.840.10008.5.1.4.1.1.6.1", {}, Reason.NOT_XRAY, "Ultrasound Image"),
        ("1.2.840.10008.5.1.4.1.1.13.1.3", {}, Reason.NOT_XRAY, "Breast Tomosynthesis Image"),
        ("1.2.840.10008.5.1.4.1.1.2", {}, Reason.NOT_XRAY, "CT Image"),
        (None, {"PresentationIntentType": "FOR PROCESSING"}, Reason.FOR_PROCESSING, ""),
        (uid.DigitalXRayImageStorageForProcessing, {}, Reason.FOR_PROCESSING, ""),
    ],
)
def test_other_objects_are_rejected_with_what_they_are(
    sop_class: str | None, tags: dict[str, Any], reason: Reason, detail: str
) -> None:
    without_pixels = {"PixelData": None, "Rows": None} if reason is Reason.NOT_IMAGE else {}
    file = dataset(FILM, **tags, **without_pixels)
    if sop_class:
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = sop_class
    for read in (read_header, lambda data: decode(data, EXACT)):
        with pytest.raises(RejectedScanError) as caught:
            read(saved(file))
        assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_a_private_kind_of_object_is_judged_by_its_pixels() -> None:
    file = dataset(TWELVE, **BITS, **WINDOW)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    assert close(saved(file))


def test_the_gate_comes_before_the_pixels(tmp_path: Path) -> None:
    archive = open_store(str(tmp_path))
    outcomes = []
    for part in ("CHEST", "HIP"):
        broken = compressed(dataset(FILM, BodyPartExamined=part), b"\xff\xd8 no frame \xff\xd9", uid.JPEGBaseline8Bit)
        archive.put("scan", broken)
        scan = archive.head("scan")
        film = read_film(archive.uri("scan"), scan.etag, scan.size, ReadSettings(preprocessing=EXACT))
        outcomes.append((film.reason, film.columns.body_part))
    assert outcomes == [(Reason.CORRUPT, "CHEST"), (Reason.NOT_CHEST, "HIP")]


def shown(data: bytes) -> npt.NDArray[np.int16]:
    return decode(data, EXACT).pixels.astype(np.int16)


PLAIN = shown(encode(FILM))


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_was_held_otherwise(orientation: int, form: str) -> None:
    upright = Image.fromarray(FILM)
    undo: dict[int, Callable[[Image.Image], Image.Image]] = {
        2: lambda film: film.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda film: film.transpose(Image.Transpose.ROTATE_180),
        4: lambda film: film.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda film: film.transpose(Image.Transpose.TRANSPOSE),
        6: lambda film: film.transpose(Image.Transpose.ROTATE_90),
        7: lambda film: film.transpose(Image.Transpose.TRANSVERSE),
        8: lambda film: film.transpose(Image.Transpose.ROTATE_270),
    }
    held = undo.get(orientation, lambda film: film)(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(held, form, exif=exif, **({"quality": 98} if form == "jpeg" else {}))
    assert np.abs(shown(data) - PLAIN).max() <= 6
    assert (read_header(data).width, read_header(data).height) == (96, 80)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_png_of_sixteen_bits_whose_values_fill_fewer(bits: int) -> None:
    bright = FILM.copy()
    bright[0, 0] = 255
    full = np.rint(bright.astype(np.float64) * ((1 << bits) - 1) / 255).astype(np.uint16)
    assert np.abs(shown(encode(Image.fromarray(full))) - shown(encode(bright))).max() <= 1


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) if crc is None else crc)
    )


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0x", crc=1),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 24))),
        chunk(b"iCCP", b"broken\0\0\xff\xff"),
        chunk(b"acTL", struct.pack(">II", 5, 0)),
        chunk(b"prVt", b"?"),
    ],
    ids=["bad crc", "bomb of text", "broken profile", "animation", "private"],
)
def test_chunks_beside_the_picture_are_skipped(extra: bytes) -> None:
    data = encode(FILM)
    after_header = 8 + 25
    assert (shown(data[:after_header] + extra + data[after_header:]) == PLAIN).all()


@pytest.mark.parametrize("form", ["twelve", "lossless"])
def test_jpeg_files_of_other_kinds(form: str) -> None:
    data = (
        imagecodecs.jpeg8_encode(TWELVE, level=98, bitspersample=12)
        if form == "twelve"
        else imagecodecs.jpeg8_encode(FILM, lossless=True)
    )
    assert np.abs(shown(data) - PLAIN).max() <= 2
    with pytest.raises(UnreadableScanError, match="truncated"):
        shown(data[:-40])


FIELD = Path(os.environ.get("RAYSCAN_REAL_DATA", "/nowhere")) / "field"


@pytest.mark.skipif(not FIELD.exists(), reason="needs RAYSCAN_REAL_DATA with the folder field")
def test_cases_from_the_field() -> None:
    """Files of public reports, with the film that other viewers show."""
    wrong = []
    with (FIELD / "cases.csv").open() as file:
        for case in csv.DictReader(file):
            path = FIELD / case["file"]
            expected = path.with_name(f"{path.name}.npy")
            try:
                pixels = decode(path.read_bytes(), Preprocessing(size=224, decode="exact")).pixels.astype(np.int16)
            except ScanError as error:
                if expected.exists():
                    wrong.append(f"{path.name}: {error}")
                continue
            if not expected.exists():
                wrong.append(f"{path.name}: a film")
                continue
            wanted = Image.fromarray(np.load(expected)).resize((224, 224), Image.Resampling.BILINEAR)
            if np.abs(pixels - np.asarray(wanted)).mean() > 3:
                wrong.append(path.name)
    assert not wrong
