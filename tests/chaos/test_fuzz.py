"""Mutated films through the decoders, for RAYSCAN_FUZZ_MINUTES (2): no process ends, none hangs, memory is bounded.

A child decodes one mutation after another in its own process, as a worker does, and writes down which it is at. If it
dies or is too slow, that mutation is kept in the test's folder: it becomes a test, or its codec goes into a child.
"""

import os
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import FileDataset

from models.spec import Preprocessing
from pipelines.decoding.decode import decode
from pipelines.errors import ScanError
from tests.pipelines.decoding.films import compressed, dataset, encode, ramp, saved
from tests.pipelines.decoding.frames import EXTENDED, LOSSLESS

MINUTES = float(os.environ.get("RAYSCAN_FUZZ_MINUTES", "2"))
SLOWEST = 120.0
"""Seconds on the clock for one mutation; a hang. Decoders in children have deadlines of processor time before."""
MOST_MEMORY = 3 << 30

FILM = ramp()
TWELVE = FILM.astype(np.uint16) * 16


def seeds() -> dict[str, bytes]:
    """A small film of each kind that is decoded."""

    def twelve() -> FileDataset:
        return dataset(TWELVE, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)

    frames = {"jpeg_extended": EXTENDED, **LOSSLESS}
    rle = twelve()
    rle.compress(uid.RLELossless)
    deflated = twelve()
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return {
        "jpeg": encode(FILM, "jpeg", quality=90),
        "jpeg_progressive": encode(FILM, "jpeg", quality=90, progressive=True),
        "jpeg_12_bit": EXTENDED[1](TWELVE),
        "png": encode(FILM),
        "dicom": saved(twelve()),
        "dicom_deflated": saved(deflated),
        "dicom_rle": saved(rle),
        **{
            f"dicom_{name}": compressed(twelve(), encoded(TWELVE), syntax) for name, (syntax, encoded) in frames.items()
        },
    }


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with some flipped, cut, repeated or replaced by extreme numbers."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        place = chance.randrange(len(out))
        match chance.randrange(6):
            case 0:
                out[place] ^= 1 << chance.randrange(8)
            case 1:
                out[place] = chance.randrange(256)
            case 2:
                number = chance.choice([0, 1, 0x7FFF, 0x8000, 0xFFFF])
                out[place : place + 2] = struct.pack(chance.choice("<>") + "H", number)
            case 3:
                number = chance.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 60_000])
                out[place : place + 4] = struct.pack(chance.choice("<>") + "I", number)
            case 4:
                del out[place : place + chance.randrange(1, 64)]
            case _:
                out[place:place] = out[place : place + chance.randrange(1, 64)]
        if not out:
            return b"\0"
    if data.startswith(b"\x89PNG") and chance.random() < 0.7:
        return _with_checksums(bytes(out))
    return bytes(out)


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are right, so that the mutation comes as far as the decoder."""
    out, place = bytearray(data), 8
    while place + 12 <= len(out):
        length = int.from_bytes(out[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[place + 4 : end]))
        place = end + 4
    return bytes(out)


def child(first: int, minutes: float, note: Path) -> None:
    """Decode mutation after mutation from number `first` on; `note` holds the number under way."""
    films = seeds()
    names = sorted(films)
    # So small that the lower resolutions of JPEG 2000 are decoded as well.
    ways = [Preprocessing(size=16), Preprocessing(size=64, decode="exact")]
    outcomes: Counter[str] = Counter()
    number, ends = first, time.monotonic() + 60 * minutes
    slowest = 0.0
    with note.open("r+b", buffering=0) as under_way:
        while time.monotonic() < ends:
            data = mutated(films[names[number % len(names)]], random.Random(number))
            under_way.seek(0)
            under_way.write(f"{number:>12}".encode())
            started = time.process_time()
            try:
                decode(data, ways[number // len(names) % 2])
                outcomes["film"] += 1
            except ScanError as error:
                outcomes[error.reason.value] += 1
            slowest = max(slowest, time.process_time() - started)
            number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{number - first} mutations, slowest {slowest:.2f} CPU-s, peak {peak} MiB, {dict(outcomes)}", flush=True)


@pytest.mark.chaos
def test_no_mutation_ends_the_process(tmp_path: Path) -> None:
    note, deaths, first = tmp_path / "under-way", [], 0
    ends = time.monotonic() + 60 * MINUTES
    while (left := (ends - time.monotonic()) / 60) > 0 and len(deaths) < 20:
        note.write_bytes(f"{first:>12}".encode())
        script = (
            "import resource, sys\n"
            f"resource.setrlimit(resource.RLIMIT_AS, ({MOST_MEMORY}, {MOST_MEMORY}))\n"
            "from pathlib import Path\n"
            "from tests.chaos.test_fuzz import child\n"
            f"child({first}, {left}, Path({str(note)!r}))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        at, since = -1, time.monotonic()
        while process.poll() is None:
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                number = int(note.read_bytes() or b"0")
                if number != at:
                    at, since = number, time.monotonic()
                elif time.monotonic() - since > SLOWEST:
                    process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        number = int(note.read_bytes())
        films = seeds()
        kind = sorted(films)[number % len(films)]
        (tmp_path / f"{number}-{kind}").write_bytes(mutated(films[kind], random.Random(number)))
        deaths.append((number, kind, process.returncode, errors.strip().splitlines()[-1:]))
        print("death:", deaths[-1], flush=True)
        first = number + 1
    assert not deaths, f"kept in {tmp_path}"
