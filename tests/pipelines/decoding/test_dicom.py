"""DICOM: the grey levels a radiologist would be shown, and nobody's name anywhere."""

import logging
import traceback
import tracemalloc
import warnings
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from models.gate.checks import ScanTags, check_tags
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding import dicom_file
from pipelines.decoding.decode import decode, read_header, sniff
from pipelines.decoding.dicom import read_grey
from pipelines.errors import ScanError, UnreadableScanError
from pipelines.phantom import dicom_bytes
from tests.pipelines.decoding.films import SECRETS, compressed, dataset, dicom, encode, ramp, saved

FILM = ramp()
TWELVE = FILM.astype(np.uint16) * 16
FEW = dicom(FILM[:16, :16], WindowCenter=128, WindowWidth=256)


def grey(data: bytes) -> npt.NDArray[np.int16]:
    return read_grey(data)[0].astype(np.int16)


def reason(data: bytes) -> Reason:
    with pytest.raises(UnreadableScanError) as caught:
        read_grey(data)
    return caught.value.reason


def close(data: bytes, wanted: npt.NDArray[np.uint8] = FILM, tolerance: int = 1) -> bool:
    return int(np.abs(grey(data) - wanted).max()) <= tolerance


def test_header_is_the_allow_list() -> None:
    header = read_header(dicom(FILM))
    assert header.tags == ScanTags(modality="DX", body_part="CHEST", view="PA")
    assert (header.width, header.height, header.study_date) == (96, 80, date(2024, 2, 29))
    assert header.patient_id == "MRN-0042"
    assert not any(secret in repr(header) for secret in SECRETS)


def test_the_window_sets_black_and_white_not_the_extremes_of_the_film() -> None:
    assert close(dicom(TWELVE, WindowCenter=2048, WindowWidth=4096))
    narrow = grey(dicom(TWELVE, WindowCenter=2048, WindowWidth=512))
    assert narrow.min() == 0
    assert narrow.max() == 255
    # A window wider than the film leaves it grey: its own darkest level is not black.
    wide = grey(dicom(TWELVE, WindowCenter=4096, WindowWidth=8192))
    assert np.abs(wide - FILM / 2).max() <= 1


def test_the_first_of_several_windows_counts() -> None:
    assert close(dicom(TWELVE, WindowCenter=[2048, 100], WindowWidth=[4096, 50]))


def test_without_a_window_the_film_fills_the_range() -> None:
    levels = grey(dicom(TWELVE))
    assert (levels.min(), levels.max()) == (0, 255)
    low, high = int(FILM.min()), int(FILM.max())
    assert np.abs(levels - (FILM.astype(float) - low) * 255 / (high - low)).max() <= 1


@pytest.mark.parametrize("tags", [{"WindowWidth": 0}, {"WindowWidth": -5}, {"WindowCenter": None}])
def test_a_window_that_is_none_is_no_window(tags: dict[str, float | None]) -> None:
    file = dataset(TWELVE, WindowCenter=2048, WindowWidth=4096)
    for name, value in tags.items():
        setattr(file, name, value)
    assert (grey(saved(file)) == grey(dicom(TWELVE))).all()


def test_rescale_comes_before_the_window() -> None:
    data = dicom(TWELVE, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8192)
    assert close(data)
    signed = (TWELVE.astype(np.int32) - 2048).astype(np.int16)
    assert close(dicom(signed, WindowCenter=0, WindowWidth=4096))


@pytest.mark.parametrize("empty", [["RescaleSlope"], ["RescaleSlope", "RescaleIntercept"], ["WindowWidth"]])
def test_an_empty_tag_is_no_tag(empty: list[str]) -> None:
    file = dataset(TWELVE, RescaleSlope=1, RescaleIntercept=0, WindowCenter=2048, WindowWidth=4096)
    bare = dataset(TWELVE, WindowCenter=2048, WindowWidth=4096)
    for name in empty:
        setattr(file, name, "")
        bare.pop(name, None)
    assert (grey(saved(file)) == grey(saved(bare))).all()


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": "1e308", "RescaleIntercept": 0},
        {"RescaleSlope": "1e308", "RescaleIntercept": 0, "WindowCenter": 10, "WindowWidth": 5},
        {"WindowCenter": "-1e308", "WindowWidth": "1", "VOILUTFunction": "SIGMOID"},
    ],
    ids=str,
)
def test_numbers_beyond_all_bounds_are_corrupt(tags: dict[str, str | int]) -> None:
    assert reason(dicom(TWELVE, **tags)) is Reason.CORRUPT
    table = table_item(np.arange(4096, dtype=np.uint16), 12)
    if "RescaleSlope" in tags:
        assert reason(dicom(TWELVE, VOILUTSequence=[table], **tags)) is Reason.CORRUPT


def test_bits_above_the_stored_ones_do_not_count() -> None:
    # Old films keep overlays there.
    tags = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    assert close(dicom(TWELVE | 0xA000, **tags))


def test_monochrome1_is_inverted() -> None:
    data = dicom(4095 - TWELVE, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    assert close(data)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_windows(function: str) -> None:
    levels = grey(dicom(TWELVE, WindowCenter=2048, WindowWidth=4096, VOILUTFunction=function))
    share = (TWELVE.astype(float) - 2048) / 4096
    wanted = share + 0.5 if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * share))
    assert np.abs(levels - 255 * wanted).max() <= 1


def table_item(entries: npt.NDArray[np.uint16], bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = entries.tolist()
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def test_lookup_tables() -> None:
    shown = np.linspace(0, 255, 4096).astype(np.uint16)
    # Eight-bit entries for 4,096 values: the index must not be cut to eight bits as well.
    assert close(dicom(TWELVE, VOILUTSequence=[table_item(shown, 8)], WindowCenter=1, WindowWidth=2))
    late = dicom(TWELVE, VOILUTSequence=[table_item(shown[100:], 8, first=100)])
    assert close(late)
    swapped = table_item(4095 - np.arange(4096, dtype=np.uint16), 12)
    assert close(dicom(4095 - TWELVE, ModalityLUTSequence=[swapped], WindowCenter=2048, WindowWidth=4096))


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_phantom_films_are_shown_as_they_were_drawn(bits: int, photometric: str) -> None:
    assert close(dicom_bytes(FILM, bits=bits, photometric=photometric))  # type: ignore[arg-type]


def jpeg2000(stored: npt.NDArray[np.uint16]) -> bytes:
    return encode(Image.fromarray(stored), "jpeg2000", irreversible=False, no_jp2=True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compressed_frames() -> None:
    window = {"WindowCenter": 32768, "WindowWidth": 65536}
    sixteen = FILM.astype(np.uint16) * 257
    frame = jpeg2000(sixteen)
    assert close(compressed(dataset(sixteen, **window), frame, JPEG2000Lossless))
    assert reason(compressed(dataset(sixteen, **window), frame[: len(frame) // 2], JPEG2000Lossless)) is (
        Reason.TRUNCATED
    )
    frame = encode(FILM, "jpeg", quality=95)
    eight = {"WindowCenter": 128, "WindowWidth": 256}
    assert close(compressed(dataset(FILM, **eight), frame, JPEGBaseline8Bit), tolerance=8)
    # libjpeg would fill the missing half with grey.
    assert reason(compressed(dataset(FILM, **eight), frame[: len(frame) // 2], JPEGBaseline8Bit)) is Reason.TRUNCATED


def test_what_is_not_supported_says_so() -> None:
    assert reason(dicom(FILM, NumberOfFrames=2)) is Reason.UNSUPPORTED
    private = dataset(FILM)
    private.file_meta.TransferSyntaxUID = UID("1.2.840.113619.5.2")
    out = BytesIO()
    private.save_as(out, implicit_vr=True, little_endian=True)
    assert reason(out.getvalue()) is Reason.UNSUPPORTED


def test_a_deflated_file_is_inflated_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    film = dataset(TWELVE, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    film.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert close(saved(film))
    assert reason(saved(film)[:-50]) is Reason.TRUNCATED
    monkeypatch.setattr(dicom_file, "MOST_INFLATED", 1 << 20)
    bomb = dataset(FILM, PixelData=bytes(1 << 26))
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = saved(bomb)
    assert len(data) < 1 << 17
    tracemalloc.start()
    try:
        assert reason(data) is Reason.TOO_LARGE
        with pytest.raises(UnreadableScanError, match="too_large"):
            read_header(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_no_pixels() -> None:
    assert reason(dicom(FILM, PixelData=None)) is Reason.NO_PIXELS
    assert reason(dicom(FILM, Rows=0)) is Reason.NO_PIXELS
    assert reason(dicom(FILM, Rows=None)) is Reason.NO_PIXELS


def test_a_file_without_preamble() -> None:
    file = dataset(FILM, WindowCenter=128, WindowWidth=256)
    out = BytesIO()
    bare = Dataset()
    bare.update({tag: file[tag] for tag in file.keys()})  # noqa: SIM118 (a Dataset iterates over elements)
    bare.save_as(out, implicit_vr=True, little_endian=True, enforce_file_format=False)
    data = out.getvalue()
    assert data[128:132] != b"DICM"
    assert sniff(data) == "dicom"
    assert close(data)


def test_a_name_in_the_wrong_tag_is_not_taken() -> None:
    assert read_header(dicom(FILM, ViewPosition="DOE^JANE")).tags.view is None


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("20240229", date(2024, 2, 29)),
        ("2024.02.29", date(2024, 2, 29)),
        ("2024229", None),
        ("20230229", None),
        ("202402", None),
        ("", None),
        ("20240228-20240229", None),
    ],
)
def test_study_dates(text: str, day: date | None) -> None:
    assert read_header(dicom(FILM, StudyDate=text)).study_date == day


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_patient_value_leaks_whatever_byte_is_corrupt(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], place: float, value: int, cut: bool
) -> None:
    data = bytearray(FEW)
    where = int(place * len(data))
    data[where] = value
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            decode(bytes(data[:where] if cut else data), Preprocessing(size=16))
        except UnreadableScanError:
            said = traceback.format_exc()
        else:
            said = ""
    said += caplog.text + "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in caught)
    assert not any(secret in said for secret in (*SECRETS, "JANE", "MRN", "ACC-"))
    assert not caught


def test_no_patient_value_reaches_warnings_logs_or_errors(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = dataset(FILM)
    for keyword, text in (
        ("PatientBirthDate", "DOE^JANE is no date"),
        ("StudyDate", "DOE^JANE"),
        ("PatientAge", "DOE"),
    ):
        odd.add_new(keyword, "LO", text)
        odd[keyword].VR = "LO"
    spoilt = saved(odd).replace(b"LO\x13\x00DOE", b"DA\x13\x00DOE")
    for data in (spoilt, spoilt[:-200], dicom(FILM, BitsAllocated=13), dicom(FILM, PixelRepresentation=7)):
        with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
            warnings.simplefilter("always")
            try:
                decode(data, Preprocessing(size=32))
            except UnreadableScanError as error:
                assert error.__cause__ is None  # noqa: PT017 (some of these files are readable)
                assert error.__suppress_context__ or error.__context__ is None  # noqa: PT017
        said = [str(warning.message) for warning in caught] + [caplog.text, *capsys.readouterr()]
        assert not any(secret in text for secret in (*SECRETS, "DOE") for text in said)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.DOE^JANE Storage"),
        *((name, "19341231") for name in ("NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "Rows", "Columns")),
    ],
)
def test_no_detail_of_a_reason_holds_what_stands_in_the_file(keyword: str, value: str) -> None:
    odd = dataset(FILM)
    odd.add_new(keyword, "LO", value)
    with pytest.raises(ScanError) as refused:
        decode(saved(odd), Preprocessing(size=32))
    assert not any(secret in str(refused.value) for secret in ("DOE", "19341231"))


def test_a_line_as_long_as_a_date_is_no_film() -> None:
    """Its width would stand in the catalogue."""
    odd = dataset(FILM)
    odd.Rows = 1
    odd.add_new("Columns", "IS", "19341231")
    with pytest.raises(UnreadableScanError, match=r"too_large$"):
        read_header(saved(odd))


def test_real_films(real_data: Path) -> None:
    """Three chest films, two that are no chest, and one whose stream is broken."""
    tags = {}
    for path in sorted((real_data / "dicom").glob("*.dcm")):
        try:
            scan = decode(path.read_bytes(), Preprocessing())
        except UnreadableScanError as error:
            tags[path.stem] = str(error.reason)
            continue
        tags[path.stem] = check_tags(scan.tags) or "chest"
        assert 80 < scan.pixels.mean() < 220
    assert tags == {
        "966_broken_j2k": "corrupt",
        "966_fixed": "chest",
        "RG1_J2KI": "chest",
        "RG2_JPLL": "not_chest",
        "RG3_J2KI": "not_chest",
        "nih_dx_chest": "chest",
    }
