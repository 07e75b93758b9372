"""What is sifted out has a row of its own version; the rest is left, whatever the hashes."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scoring.settled import Settled

HASHES = st.integers(0, 5) | st.integers(2**64 - 3, 2**64 - 1)  # few, so that they meet
PAIRS = st.tuples(HASHES, st.integers(0, 3))


def settled_by(pairs: Iterable[tuple[int, int]], apart: Iterable[int] = ()) -> Settled:
    rows = list(pairs)
    batches = [rows[:2], rows[2:]]
    return Settled(
        (
            pa.record_batch({"uri": numbers(uri for uri, _ in batch), "scan": numbers(scan for _, scan in batch)})
            for batch in batches
        ),
        len(rows) + 3,
        apart=numbers(apart),
    )


def numbers(values: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.fromiter(values, np.uint64)


def sifted(settled: Settled, listing: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The rows that are left."""
    left = settled.sift(numbers(uri for uri, _ in listing), numbers(scan for _, scan in listing))
    return [row for row, is_left in zip(listing, left, strict=True) if is_left]


@settings(deadline=None)
@given(st.lists(PAIRS, max_size=8), st.sets(HASHES), st.sets(HASHES), st.lists(st.lists(PAIRS, max_size=6), max_size=3))
def test_a_row_is_sifted_out_only_if_its_file_alone_has_it(
    rows: list[tuple[int, int]], apart: set[int], failed: set[int], listing: list[list[tuple[int, int]]]
) -> None:
    settled = settled_by(rows, apart)
    alone = {row for row in rows if sum(row[0] == other[0] for other in rows) == 1 and row[0] not in apart}
    assert [sifted(settled, batch) for batch in listing] == [
        [row for row in batch if row not in alone] for batch in listing
    ]
    done = {uri for uri, _ in alone & {row for batch in listing for row in batch}}
    known = {uri for uri, _ in rows} | apart | failed
    assert settled.unsettled(numbers(failed)).tolist() == sorted(known - done)
    assert (len(settled), settled.done) == (len(alone), len(done))


@settings(deadline=None)
@given(st.lists(PAIRS, max_size=8), st.lists(st.lists(PAIRS, max_size=6), max_size=3))
def test_a_file_that_is_listed_twice_is_noticed(
    rows: list[tuple[int, int]], listing: list[list[tuple[int, int]]]
) -> None:
    settled = settled_by(rows)
    for batch in listing:
        sifted(settled, batch)
    uris = [uri for batch in listing for uri, _ in batch]
    assert settled.may_repeat == (len(set(uris)) < len(uris))
