"""Compressed frames: decoded to the values that went in, whatever pads them; cut ones are truncated, never guessed."""

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import FileDataset

from pipelines.contracts import Reason
from pipelines.decoding.codecs import DECODERS, signed
from pipelines.decoding.dicom import read_grey
from pipelines.decoding.dicom_file import parse
from pipelines.decoding.frames import whole_frame
from pipelines.decoding.stored import read_stored
from pipelines.errors import UnreadableScanError
from tests.pipelines.decoding.films import compressed, dataset, dicom, ramp, saved
from tests.pipelines.decoding.frames import LOSSLESS

FILM = ramp()
TWELVE = FILM.astype(np.uint16) * 16
PADS = {"none": b"", "zero": b"\0", "zeros": bytes(5), "ff": b"\xff\xff", "blank": b" ", "mixed": b"\0\xff \0"}


def twelve(**tags: object) -> FileDataset:
    return dataset(TWELVE, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096, **tags)


def stored(data: bytes) -> npt.NDArray[np.integer]:
    return read_stored(parse(data, pixels=True))


def reason(data: bytes) -> Reason:
    with pytest.raises(UnreadableScanError) as caught:
        read_grey(data)
    return caught.value.reason


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_frames_are_read_bit_for_bit_whatever_pads_them(codec: str, pad: str) -> None:
    syntax, encode = LOSSLESS[codec]
    data = compressed(twelve(), encode(TWELVE) + PADS[pad], syntax)
    assert (stored(data) == TWELVE).all()


@pytest.mark.parametrize("share", [0.4, 0.95])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_frame_without_its_end_is_truncated(codec: str, share: float) -> None:
    syntax, encode = LOSSLESS[codec]
    frame = encode(TWELVE)
    assert reason(compressed(twelve(), frame[: int(len(frame) * share)], syntax)) is Reason.TRUNCATED


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_frame_of_another_size_is_corrupt(codec: str) -> None:
    syntax, encode = LOSSLESS[codec]
    assert reason(compressed(twelve(), encode(TWELVE[:-1]), syntax)) is Reason.CORRUPT


@pytest.mark.parametrize("codec", LOSSLESS)
def test_the_frame_decides_where_the_file_names_another_codec(codec: str) -> None:
    frame = LOSSLESS[codec][1](TWELVE)
    for syntax in (uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000):
        assert (stored(compressed(twelve(), frame, syntax)) == TWELVE).all()


def test_a_codestream_without_end_marker_is_whole_if_its_tile_parts_are() -> None:
    frame = imagecodecs.jpeg2k_encode(TWELVE, level=0, codecformat="J2K", bitspersample=12, reversible=True)
    assert (stored(compressed(twelve(), frame[:-2], uid.JPEG2000Lossless)) == TWELVE).all()


def test_rle_of_grey_and_colour() -> None:
    file = twelve()
    file.compress(uid.RLELossless)
    assert (stored(saved(file)) == TWELVE).all()
    colour = np.stack([FILM, FILM // 2, 255 - FILM], axis=-1)
    file = dataset(colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    plain = stored(saved(file))
    file.compress(uid.RLELossless)
    assert (stored(saved(file)) == plain).all()


def test_twelve_bit_extended_jpeg_is_within_a_grey_level() -> None:
    frame = imagecodecs.jpeg8_encode(TWELVE, level=98, bitspersample=12)
    grey, _ = read_grey(compressed(twelve(), frame, uid.JPEGExtended12Bit))
    plain, _ = read_grey(saved(twelve()))
    assert np.abs(grey.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("unsigned_stream", [True, False])
@pytest.mark.parametrize("representation", [0, 1])
def test_the_sign_of_a_jpeg_2000_stream_is_believed(unsigned_stream: bool, representation: int) -> None:
    values = TWELVE.astype(np.int16) - 2048
    words = (values & 0xFFF).astype(np.uint16) if unsigned_stream else values
    frame = imagecodecs.jpeg2k_encode(words, level=0, codecformat="J2K", bitspersample=12, reversible=True)
    file = twelve(PixelRepresentation=representation)
    if unsigned_stream and representation == 0:
        values = words.astype(np.int16)
    assert (stored(compressed(file, frame, uid.JPEG2000Lossless)) == values).all()


@pytest.mark.parametrize("codec", ["jpeg_lossless", "jpeg_ls"])
def test_other_streams_have_the_sign_that_the_header_says(codec: str) -> None:
    values = TWELVE.astype(np.int16) - 2048
    syntax, encode = LOSSLESS[codec]
    words = (values & 0xFFF).astype(np.uint16)
    assert (stored(compressed(twelve(PixelRepresentation=1), encode(words), syntax)) == values).all()


@given(st.integers(2, 16), st.data())
def test_sign_extension_is_twos_complement(bits: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1), min_size=1)), np.int16)
    assert (signed(values.view(np.uint16) & np.uint16((1 << bits) - 1), bits) == values).all()


@given(st.binary(max_size=64), st.text("\0\xff ", max_size=8))
def test_padding_is_all_that_is_cut(body: bytes, pads: str) -> None:
    frame = b"\xff\xd8" + body + b"\xff\xd9"
    assert whole_frame(frame + pads.encode("latin-1")) == frame


def test_every_syntax_of_the_table_has_a_name_of_the_standard() -> None:
    assert all(uid.UID(syntax).is_transfer_syntax and uid.UID(syntax).is_compressed for syntax in DECODERS)


def test_an_unknown_syntax_is_named() -> None:
    with pytest.raises(UnreadableScanError, match="MPEG2") as caught:
        read_grey(compressed(dataset(FILM), b"\0" * 64, uid.MPEG2MPML))
    assert caught.value.reason is Reason.UNSUPPORTED


def test_pixels_without_compression_under_a_compressed_name_are_corrupt_or_truncated() -> None:
    file = dataset(FILM)
    file.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
    assert reason(dicom(FILM).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.80")) in {
        Reason.CORRUPT,
        Reason.TRUNCATED,
    }
