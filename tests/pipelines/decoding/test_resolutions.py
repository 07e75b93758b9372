"""Lower resolutions of JPEG 2000 and HTJ2K: the film of the full decode, from fewer pixels; never where values lie."""

from math import ceil

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom import uid

from models.spec import Preprocessing
from pipelines.decoding.codecs import decode_frame
from pipelines.decoding.decode import decode
from pipelines.decoding.frames import frame_header
from pipelines.decoding.resolutions import decode_reduced
from tests.pipelines.decoding.films import compressed, dataset

Values = npt.NDArray[np.integer]


def film(height: int, width: int, bits: int = 12, *, signed: bool = False) -> Values:
    """A smooth film with a white marker: its edges overshoot in the wavelet."""
    down, across = np.mgrid[0:height, 0:width]
    top = (1 << bits) - 1
    values = ((np.sin(across / 80) * np.cos(down / 90) + 1) / 2 * top).astype(np.int64)
    values[height // 8 : height // 4, width // 8 : width // 4] = top
    values[height // 2 : height * 5 // 8, width // 2 : width * 5 // 8] = 0
    word = 8 if bits <= 8 else 16
    return (values - (1 << (bits - 1)) if signed else values).astype(f"{'i' if signed else 'u'}{word // 8}")


def jpeg_2000(values: Values, bits: int) -> bytes:
    frame: bytes = imagecodecs.jpeg2k_encode(values, level=0, codecformat="J2K", bitspersample=bits, reversible=True)
    return frame


def htj2k(values: Values, _: int) -> bytes:
    frame: bytes = imagecodecs.htj2k_encode(values, reversible=True)
    return frame


ENCODERS = {"jpeg_2000": (uid.JPEG2000Lossless, jpeg_2000), "htj2k": (uid.HTJ2KLossless, htj2k)}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_jpeg_2000_of_any_depth_and_sign_shows_the_same_film(bits: int, signed: bool) -> None:
    values = film(641, 483, bits, signed=signed)
    frame = jpeg_2000(values, bits)
    small = decode_reduced(frame, frame_header(frame), 120, bits)
    assert small is not None
    assert small.shape == (161, 121)
    assert small.dtype.kind == values.dtype.kind
    off = np.abs(small.astype(np.int64) - values[::4, ::4])
    assert off.mean() < (1 << bits) / 100
    assert small.min() >= np.iinfo(values.dtype).min


@settings(max_examples=25, deadline=None)
@example(codec="htj2k", height=115, width=115, smallest=29)
@given(
    codec=st.sampled_from(sorted(ENCODERS)),
    height=st.integers(64, 400),
    width=st.integers(64, 400),
    smallest=st.integers(8, 400),
)
def test_a_lower_resolution_has_enough_pixels_and_no_more(codec: str, height: int, width: int, smallest: int) -> None:
    frame = ENCODERS[codec][1](film(height, width), 12)
    small = decode_reduced(frame, frame_header(frame), smallest, 12)
    sizes = [(ceil(height / step), ceil(width / step)) for step in (2, 4, 8, 16, 32)]
    enough = [size for size in sizes if min(size) >= smallest]
    assert (None if small is None else small.shape) == (enough[-1] if enough else None)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("codec", sorted(ENCODERS))
def test_a_film_of_fewer_pixels_is_that_of_all(codec: str, signed: bool) -> None:
    syntax, encode = ENCODERS[codec]
    values = film(1003, 1204, signed=signed)
    center = 0 if signed else 2048
    file = dataset(values, BitsStored=12, HighBit=11, WindowCenter=center, WindowWidth=4096)
    data = compressed(file, encode(values, 12), syntax)
    reduced, exact = (
        decode(data, Preprocessing(size=112, decode=path)).pixels.astype(int) for path in ("reduced", "exact")
    )
    off = np.abs(reduced - exact)
    assert 0 < off.mean() < 0.5
    assert off.max() < 32, "what overshoots has run over"


ODD = {
    "a palette": {"PhotometricInterpretation": "PALETTE COLOR"},
    "padding": {"PixelPaddingValue": 0},
    "a sign the codec knows nothing of": {"PixelRepresentation": 1},
}


@pytest.mark.parametrize("tags", ODD.values(), ids=ODD)
@pytest.mark.parametrize("codec", sorted(ENCODERS))
def test_values_between_which_nothing_lies_are_decoded_in_full(
    codec: str, tags: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    syntax, encode = ENCODERS[codec]
    values = film(512, 512, 8) if "PhotometricInterpretation" in tags else film(512, 512)
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 8]), ("Data", bytes(range(255, -1, -1))))
    }
    file = dataset(values, **tags, **(palette if "PhotometricInterpretation" in tags else {}))
    data = compressed(file, encode(values, 8 if values.dtype.itemsize == 1 else 12), syntax)
    reduced, exact = (decode(data, Preprocessing(size=64, decode=path)).pixels for path in ("reduced", "exact"))
    assert (reduced == exact).all()


def test_frames_whose_words_are_full_are_decoded_in_full() -> None:
    for values in (film(512, 512, 8), film(512, 512, 16)):
        frame = htj2k(values, 0)
        assert decode_reduced(frame, frame_header(frame), 64, 8 * values.dtype.itemsize) is None
    colours = np.repeat(film(512, 512, 8)[..., None], 3, axis=2)
    for encode in (jpeg_2000, htj2k):
        frame = encode(colours, 8)
        assert decode_reduced(frame, frame_header(frame), 64, 8) is None


def test_a_jpeg_has_no_resolutions() -> None:
    frame = imagecodecs.jpegls_encode(film(512, 512))
    assert decode_reduced(frame, frame_header(frame), 64, 12) is None
    assert (decode_frame(frame, frame_header(frame)) == film(512, 512)).all()
