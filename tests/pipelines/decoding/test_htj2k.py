"""HTJ2K in its child: what ends OpenJPH's process costs one film."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.contracts import Reason
from pipelines.decoding.dicom import read_grey
from pipelines.decoding.htj2k import decode_htj2k
from pipelines.errors import UnreadableScanError
from tests.pipelines.decoding.films import compressed, dataset, ramp
from tests.pipelines.decoding.frames import LOSSLESS

TWELVE = ramp().astype(np.uint16) * 16
SYNTAX, ENCODE = LOSSLESS["htj2k"]
TILE_WIDTH = slice(24, 28)
"""XTsiz of the SIZ segment (ITU T.800, A.5.1), in a frame that begins with SOC and SIZ."""


def deadly() -> bytes:
    frame = bytearray(ENCODE(TWELVE))
    frame[TILE_WIDTH] = bytes(4)
    return bytes(frame)


def test_a_frame_that_ends_its_decoder_is_named_and_the_next_is_fine() -> None:
    file = dataset(TWELVE, BitsStored=12, HighBit=11)
    reasons = []
    for frame in (deadly(), deadly()):
        try:
            read_grey(compressed(file, frame, SYNTAX))
        except UnreadableScanError as error:
            reasons.append(error.reason)
    assert reasons == [Reason.CRASHED] * 2
    assert (decode_htj2k(ENCODE(TWELVE)) == TWELVE).all()


def test_threads_get_their_own_films() -> None:
    films = [np.roll(TWELVE, shift) for shift in range(24)]
    with ThreadPoolExecutor(4) as threads:
        decoded = list(threads.map(decode_htj2k, [ENCODE(film) for film in films]))
    assert all((ours == film).all() for ours, film in zip(decoded, films, strict=True))
