"""Whatever the bytes: pixels of the right shape, or a reason."""

import logging
import struct
import warnings
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from models.gate.checks import check_pixels
from models.spec import Preprocessing
from pipelines.contracts import Reason
from pipelines.decoding.decode import decode, read_header, sniff
from pipelines.errors import UnreadableScanError
from pipelines.phantom import broken_files
from tests.pipelines.decoding.films import SECRETS, compressed, dataset, dicom, encode, ramp

FILM = ramp()
SMALL = Preprocessing(size=32)
VALID = {
    "jpeg": encode(FILM, "jpeg", quality=90),
    "png": encode(FILM),
    "dicom": dicom(FILM.astype(np.uint16) * 16, WindowCenter=2048, WindowWidth=4096),
}


def expected(size: int = 32) -> np.ndarray:
    return np.asarray(Image.fromarray(FILM).resize((size, size), Image.Resampling.BILINEAR), dtype=np.int16)


def reason(data: bytes) -> Reason:
    with pytest.raises(UnreadableScanError) as caught:
        decode(data, SMALL)
    return caught.value.reason


@pytest.mark.parametrize("kind", VALID)
def test_each_format_gives_the_same_film(kind: str) -> None:
    assert sniff(VALID[kind]) == kind
    scan = decode(VALID[kind], SMALL)
    assert scan.pixels.shape == (32, 32)
    assert scan.pixels.dtype == np.uint8
    assert np.abs(scan.pixels - expected()).mean() < 1.5
    assert (scan.header.format, scan.header.width, scan.header.height) == (kind, 96, 80)
    assert read_header(VALID[kind]) == scan.header


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 30, "progressive": True}], ids=str)
def test_the_exact_path_is_pillows(options: dict[str, int]) -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (333, 421), dtype=np.uint8), "jpeg", **options)
    wanted = np.asarray(Image.open(BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR))
    assert (decode(data, Preprocessing(size=64, decode="exact")).pixels == wanted).all()


def test_the_dct_path_is_close_to_the_exact_one() -> None:
    film = np.kron(np.random.default_rng(0).integers(0, 256, (40, 40)), np.ones((27, 27))).astype(np.uint8)
    data = encode(film, "jpeg", quality=95)
    dct, exact = (decode(data, Preprocessing(size=64, decode=path)).pixels for path in ("dct", "exact"))
    assert 0 < np.abs(dct.astype(int) - exact).mean() < 3


@pytest.mark.parametrize(
    ("side", "scale"), [(64, 4), (63, 4), (65, 2), (32, 8), (16, 8), (128, 2), (129, 1), (256, 1), (300, 1)]
)
def test_the_dct_path_decodes_at_the_smallest_scale_that_covers_the_film(side: int, scale: int) -> None:
    """Shown by the mean of its blocks: at 1/n libjpeg gives the mean of blocks of n x n pixels."""
    film = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    data = encode(film, "jpeg", quality=100)
    whole = np.asarray(Image.open(BytesIO(data)), dtype=np.float64)
    blocks = whole.reshape(256 // scale, scale, 256 // scale, scale).mean(axis=(1, 3)).round().astype(np.uint8)
    wanted = np.asarray(Image.fromarray(blocks).resize((side, side), Image.Resampling.BILINEAR), dtype=int)
    pixels = decode(data, Preprocessing(size=side, decode="dct")).pixels.astype(int)
    assert np.abs(pixels - wanted).mean() < 1


def test_the_dct_path_covers_the_film_with_its_shorter_side() -> None:
    """A narrow film must not be decoded so small that its width is enlarged again."""
    film = np.tile(np.arange(100, dtype=np.uint8)[None] % 2 * 200, (800, 1))  # lines of one pixel
    data = encode(film, "jpeg", quality=100)
    pixels = decode(data, Preprocessing(size=100, decode="dct")).pixels
    assert np.abs(np.diff(pixels.astype(int), axis=1)).min() > 150


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(FILM).convert("RGB"),
        Image.fromarray(FILM).convert("LA"),
        Image.fromarray(FILM).convert("RGBA"),
        Image.fromarray(FILM).convert("P"),
        Image.fromarray(FILM.astype(np.uint16) * 257),
    ],
    ids=lambda image: image.mode,
)
def test_png_of_any_mode_becomes_grey(image: Image.Image) -> None:
    assert np.abs(decode(encode(image), SMALL).pixels - expected()).mean() < 1.5


def test_transparent_palette_and_colour_jpeg() -> None:
    palette = Image.fromarray(FILM).convert("P")
    assert decode(encode(palette, transparency=b"\xff" * 256), SMALL).pixels.shape == (32, 32)
    for mode in ("RGB", "CMYK"):
        data = encode(Image.fromarray(FILM).convert(mode), "jpeg", quality=95)
        assert np.abs(decode(data, SMALL).pixels - expected()).mean() < 2


def test_the_name_does_not_matter_but_the_content_does() -> None:
    assert reason(b"") is Reason.EMPTY_FILE
    assert reason(b"not a film at all" * 20) is Reason.UNKNOWN_FORMAT
    assert reason(b"\x08\x00" + b"random" * 100) is Reason.UNKNOWN_FORMAT
    assert reason(b"GIF89a" + bytes(100)) is Reason.UNKNOWN_FORMAT


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_cut_stream_is_truncated(kind: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 200), dtype=np.uint8)
    data = encode(noise, kind)
    assert reason(data[: int(len(data) * share)]) is Reason.TRUNCATED


def test_a_cut_dicom_is_truncated() -> None:
    assert reason(VALID["dicom"][:-500]) is Reason.TRUNCATED
    frame = encode(Image.fromarray(FILM), "jpeg2000", irreversible=False, no_jp2=True)
    data = compressed(dataset(FILM, WindowCenter=128, WindowWidth=256), frame, JPEG2000Lossless)
    assert {reason(data[:-cut]) for cut in (9, 100, len(frame) // 2, len(frame) - 20)} == {Reason.TRUNCATED}


def test_a_spoilt_stream_is_corrupt() -> None:
    jpeg = VALID["jpeg"]
    tables = jpeg.index(b"\xff\xc4")
    assert reason(jpeg[:tables] + b"\xff\xc4\0\x03\0" + jpeg[tables + 5 :]) is Reason.CORRUPT
    png = VALID["png"]
    stream = png.index(b"IDAT")
    assert reason(png[: stream + 6] + b"\xff\xff\xff" + png[stream + 9 :]) is Reason.CORRUPT


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(FILM > 127),
        Image.fromarray(FILM // 16).convert("P"),
    ],
    ids=["one bit", "few colours"],
)
def test_png_of_few_bits(image: Image.Image) -> None:
    wanted = image.convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    bits = {"bits": 4} if image.mode == "P" else {}
    assert (decode(encode(image, **bits), SMALL).pixels == np.asarray(wanted)).all()


def test_what_is_transparent_is_black() -> None:
    grey = Image.fromarray(FILM)
    clear = Image.merge(
        "LA",
        (grey, Image.fromarray(np.where(np.arange(96) < 48, 255, 0).astype(np.uint8).repeat(80).reshape(96, 80).T)),
    )
    pixels = decode(encode(clear), SMALL).pixels
    assert (pixels[:, 18:] == 0).all()
    assert np.abs(pixels[:, :14] - expected()[:, :14]).mean() < 1.5


def test_no_area() -> None:
    jpeg = bytearray(VALID["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 7] = b"\0\0"
    assert reason(bytes(jpeg)) is Reason.NO_PIXELS
    assert reason(broken_files(0)["zero_size.png"]) is Reason.NO_PIXELS


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((10_001, 10_000), (50_000, 50_000), (2**31 - 1, 2)):
            assert reason(png_claiming(width, height)) is Reason.TOO_LARGE
        assert reason(dicom(FILM, Rows=60_000, Columns=60_000)) is Reason.TOO_LARGE
        jpeg = bytearray(VALID["jpeg"])
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
        assert reason(bytes(jpeg)) is Reason.TOO_LARGE
        assert read_header(png_claiming(10_000, 9_999)).width == 10_000


def test_the_phantoms_broken_files_are_what_their_names_say() -> None:
    words = {
        "empty": Reason.EMPTY_FILE,
        "truncated": Reason.TRUNCATED,
        "text": Reason.UNKNOWN_FORMAT,
        "zero": Reason.NO_PIXELS,
        "wrong": Reason.UNKNOWN_FORMAT,
    }
    for name, data in broken_files(3).items():
        if name == "blank.png":
            assert check_pixels(decode(data, SMALL).pixels) == "blank"
        else:
            assert reason(data) is words[name.split("_")[0].split(".")[0]], name


def must_decode_or_give_a_reason(data: bytes) -> None:
    with suppress(UnreadableScanError):
        pixels = decode(data, SMALL).pixels
        assert pixels.shape == (32, 32)
        assert pixels.dtype == np.uint8


MAGIC = st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM", b"\x08\x00\x16\x00"])


@given(MAGIC, st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes(magic: bytes, data: bytes) -> None:
    must_decode_or_give_a_reason(magic + data)


@pytest.mark.parametrize("kind", VALID)
@given(share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_any_truncation(kind: str, share: float) -> None:
    """A file cut off gives the whole film or none: half a film could hide the disease."""
    with suppress(UnreadableScanError):
        pixels = decode(VALID[kind][: int(len(VALID[kind]) * share)], SMALL).pixels
        assert (pixels == decode(VALID[kind], SMALL).pixels).all()


@pytest.mark.parametrize("kind", VALID)
@given(place=st.floats(0, 1, exclude_max=True), head=st.booleans(), value=st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_any_corrupt_byte(kind: str, place: float, head: bool, value: int) -> None:
    data = bytearray(VALID[kind])
    # Half of the examples hit the first 1,200 bytes, where the structure is.
    data[int(place * (min(1200, len(data)) if head else len(data)))] = value
    must_decode_or_give_a_reason(bytes(data))


def exif() -> Image.Exif:
    """What a digitiser may write into a JPEG or PNG."""
    tags = Image.Exif()
    tags[0x010E], tags[0x013B] = SECRETS[0], SECRETS[3]  # image description, artist
    return tags


@pytest.mark.parametrize(
    "data",
    [encode(FILM, "jpeg", exif=exif()), encode(FILM, "jpeg", comment=SECRETS[0]), encode(FILM, exif=exif())],
    ids=["jpeg exif", "jpeg comment", "png exif"],
)
def test_no_patient_value_of_a_picture_leaks(
    data: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert any(secret.encode() in data for secret in SECRETS)
    with caplog.at_level(logging.DEBUG):
        for cut in (len(data), len(data) // 2, 60, 30):
            with suppress(UnreadableScanError):
                decode(data[:cut], SMALL)
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(secret in said for secret in SECRETS)
