"""The films of an audit: a bounded sample of a catalogue, fetched, and decoded as they are and harmonised.

The sample is drawn by a hash of the scan ids, equally many films of each label as far as there are: the same catalogue
gives the same sample, in whatever order it was listed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, zip_longest
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.spec import Preprocessing
from pipelines.decoding.decode import decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import ScanError
from pipelines.ingest.border import collimation, jpeg_settings, specks, texture
from pipelines.ingest.near_copies import difference_hash, thumbnail
from pipelines.progress import progress

SIDE: Final = 224
"""Side in pixels at which films are looked at."""
SHOWN: Final = 12
"""Films of each label whose pictures are kept."""
SHOWN_SIDE: Final = 112
BINS: Final = 32
"""Bars of the histograms of grey levels."""
THREADS: Final = 8

Row = Mapping[str, Any]
Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Film:
    """What is kept of one film."""

    row: Row
    thumb: Pixels
    """[32, 32]."""
    harmonised: Pixels
    """[32, 32], of the harmonised film."""
    hash: npt.NDArray[np.uint64]
    grey: Numbers
    """Share of its pixels in each of BINS ranges of grey."""
    texture: tuple[Sequence[float], Sequence[float]]
    """As it is, and harmonised."""
    bars: Sequence[float]
    specks: Sequence[float]
    quality: float
    """Of a JPEG; NaN for others."""
    components: float
    pictures: tuple[Pixels, Pixels] | None
    """As it is, in its own shape, and harmonised [SHOWN_SIDE, SHOWN_SIDE]."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The films that could be decoded, and why the others could not."""

    films: Sequence[Film]
    problems: Mapping[str, int]
    """Films of the sample that could not be read, by reason."""
    aspect: float
    """Width over height that harmonised films were cut to."""


def look(table: pa.Table, most: int, aspect: float) -> Looked:
    """Look at no more than `most` rows of a catalogue."""
    rows = sample(table.to_pylist(), most)
    shown: Counter[str | None] = Counter()
    asked = []
    for row in rows:
        shown[row["label"]] += 1
        asked.append((row, shown[row["label"]] <= SHOWN))

    def one(ask: tuple[Row, bool]) -> Film | str:
        advance(1)
        return _film(*ask, aspect=aspect)

    with ThreadPoolExecutor(THREADS) as threads, progress("audit", len(rows), "films") as advance:
        results = list(threads.map(one, asked))
    return Looked(
        films=[film for film in results if isinstance(film, Film)],
        problems=dict(Counter(reason for reason in results if isinstance(reason, str))),
        aspect=aspect,
    )


def sample(rows: Sequence[Row], most: int) -> list[Row]:
    """`most` rows, drawn by hash, in turn from each label; labelled ones first."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: blake2b(row["scan_id"].encode(), digest_size=8).digest()):
        by_label[row["label"] or ""].append(row)
    unlabelled = by_label.pop("", [])
    turns = zip_longest(*(by_label[label] for label in sorted(by_label)))
    return [row for row in chain(chain.from_iterable(turns), unlabelled) if row is not None][:most]


def _film(row: Row, pictured: bool, *, aspect: float) -> Film | str:
    try:
        data = fetch(row["uri"], row["etag"])
        film = decode(data, Preprocessing(size=SIDE)).pixels
        harmonised = decode(data, Preprocessing(size=SIDE, harmonise=aspect)).pixels
        pictures = None
        if pictured:
            pictures = (
                decode(data, Preprocessing(size=SHOWN_SIDE, fit="letterbox")).pixels,
                decode(data, Preprocessing(size=SHOWN_SIDE, harmonise=aspect)).pixels,
            )
    except ScanError as error:
        return error.reason.value
    quality, components = jpeg_settings(data) if data.startswith(b"\xff\xd8\xff") else (math.nan, math.nan)
    return Film(
        row=row,
        thumb=thumbnail(film),
        harmonised=thumbnail(harmonised),
        hash=difference_hash(film),
        grey=np.bincount(film.ravel() // (256 // BINS), minlength=BINS) / film.size,
        texture=(texture(film), texture(harmonised)),
        bars=collimation(film),
        specks=specks(film),
        quality=quality,
        components=components,
        pictures=pictures,
    )
