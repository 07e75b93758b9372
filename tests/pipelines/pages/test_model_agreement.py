"""Two models over one archive: the page counts what differs, which way and where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from pipelines.contracts import scan_id
from pipelines.errors import InputError
from pipelines.pages import model_agreement
from pipelines.storage import Store
from pipelines.table.query import open_scores
from tests.pipelines.pages.samples import HOSTILE, MODEL_ID, Outcome, Page, write_run, written_report

OTHER = "ffeeddccbbaa9988"


def write_both(
    store: Store, pairs: list[tuple[float | None, float | None]], night: int = 0, sites: list[str] | None = None
) -> None:
    """A run of each model over the same scans; None where a model did not score one."""
    for model_id, side in ((MODEL_ID, 0), (OTHER, 1)):
        outcomes = []
        for number, pair in enumerate(pairs):
            uri = f"s3://hospital/scans/film-{number}.dcm"
            columns: dict[str, Any] = {"uri": uri, "scan_id": scan_id(uri, "e")}
            site = sites[number] if sites else "north"
            if pair[side] is None:
                outcomes.append(Outcome(1, reason="blank", status="rejected", site=site, columns=columns))
            else:
                outcomes.append(Outcome(1, probability=pair[side], site=site, columns=columns))
        write_run(store, night, outcomes, model_id=model_id)


def compared(store: Store, out: Path, a: str = MODEL_ID, b: str = OTHER) -> Page:
    return written_report(store, out, compare=f"{a},{b}")


PAIRS: list[tuple[float | None, float | None]] = [
    *[(0.1, 0.15)] * 60,
    *[(0.9, 0.8)] * 30,
    *[(0.4, 0.6)] * 7,
    *[(0.7, 0.2)] * 3,
    (0.5, None),
    (None, 0.5),
    (None, 0.7),
]


class TestFigures:
    def test_counts_flips_both_ways(self, store: Store, tmp_path: Path) -> None:
        write_both(store, PAIRS)
        text = compared(store, tmp_path / "r.html").text
        assert "Films scored by both 100 1 by A only, 2 by B only" in text
        assert "Called differently 10 10.0 %" in text
        assert "Positive by B only 7 7.0 %" in text
        assert "Positive by A only 3 3.0 %" in text
        assert "Called positive 33 33.0 % 37 37.0 %" in text
        mean = (60 * 0.05 + 30 * 0.1 + 7 * 0.2 + 3 * 0.5) / 100
        assert f"mean absolute {mean:.4f}" in text
        assert f"mean of B minus A {(60 * 0.05 - 30 * 0.1 + 7 * 0.2 - 3 * 0.5) / 100:+.4f}" in text
        assert "largest absolute 0.5000" in text

    def test_the_other_way_round_is_the_mirror(self, store: Store, tmp_path: Path) -> None:
        write_both(store, PAIRS)
        text = compared(store, tmp_path / "r.html", a=OTHER, b=MODEL_ID).text
        assert "2 by A only, 1 by B only" in text
        assert "Positive by B only 3" in text
        assert "Positive by A only 7" in text

    def test_rank_correlation_is_spearmans_with_ties(self, store: Store) -> None:
        rng = np.random.default_rng(4)
        a = np.round(rng.random(300), 2)
        b = np.clip(np.round(a + rng.normal(0, 0.2, 300), 1), 0, 1)
        write_both(store, [(float(x), float(y)) for x, y in zip(a, b, strict=True)])
        with open_scores(store.root) as connection:
            model_agreement._pair_up(connection, MODEL_ID, OTHER)
            assert model_agreement._totals(connection)["correlation"] == pytest.approx(spearmanr(a, b).statistic)

    def test_a_model_that_says_always_the_same_has_no_ranks(self, store: Store, tmp_path: Path) -> None:
        write_both(store, [(0.3, 0.1), (0.3, 0.9)])
        assert "Rank correlation \N{EN DASH}" in compared(store, tmp_path / "r.html").text

    def test_every_film_stands_in_one_cell(self, store: Store) -> None:
        write_both(store, [(0.0, 1.0), (1.0, 1.0), (0.5, 0.49), (0.0, 0.0), (0.001, 0.001)])
        with open_scores(store.root) as connection:
            model_agreement._pair_up(connection, MODEL_ID, OTHER)
            cells = model_agreement._cells(connection)
        assert [(cell["x"], cell["y"], cell["films"], cell["flips"]) for cell in cells] == [
            (0, 0, 2, 0),
            (0, 39, 1, 1),
            (20, 19, 1, 1),
            (39, 39, 1, 0),
        ]

    def test_each_models_newest_row_counts(self, store: Store, tmp_path: Path) -> None:
        write_both(store, [(0.1, 0.9)] * 3)
        write_both(store, [(0.8, 0.9), (None, 0.9), (0.1, 0.2)], night=1)
        text = compared(store, tmp_path / "r.html").text
        assert "Films scored by both 2 0 by A only, 1 by B only" in text  # A refused the second, at last
        assert "Called differently 0" in text

    def test_the_pairs_are_those_of_the_view(self, store: Store) -> None:
        write_both(store, PAIRS)
        write_both(store, [(0.8, None), (None, 0.9), (0.1, 0.2)], night=1)
        with open_scores(store.root) as connection:
            model_agreement._pair_up(connection, MODEL_ID, OTHER)
            mine = connection.sql("SELECT scan_id, a, b, was <> now FROM pairs ORDER BY scan_id").fetchall()
            view = connection.execute(
                "SELECT scan_id, probability_a, probability_b, flipped FROM agreement"
                " WHERE model_a = ? AND model_b = ? ORDER BY scan_id",
                [MODEL_ID, OTHER],
            ).fetchall()
        assert mine == view

    def test_sites(self, store: Store, tmp_path: Path) -> None:
        sites = ["north"] * 97 + [HOSTILE] * 6
        write_both(store, PAIRS, sites=sites)
        page = compared(store, tmp_path / "r.html")
        assert "north 97 7 7.2 % 7 0 +0.0144" in page.text
        assert f"{HOSTILE} 3 3 100.0 % 0 3 -0.5000" in page.text

    def test_the_most_different_come_first_and_no_more_than_shown(self, store: Store, tmp_path: Path) -> None:
        write_both(store, PAIRS)
        page = compared(store, tmp_path / "r.html")
        assert page.text.count(".dcm") == model_agreement.FILMS_SHOWN
        first = page.text.index("A 0.7000 · B 0.2000 positive by A only north")
        assert first < page.text.index("A 0.4000 · B 0.6000 positive by B only north")
        assert page.charts == ["Films by the probabilities of both models; those called differently are orange"]


class TestAdvice:
    @pytest.mark.parametrize(
        ("films", "to_positive", "to_negative", "says"),
        [
            (99, 50, 0, "Only 99 films were scored by both"),
            (10_000, 300, 100, "B calls more films positive than A"),
            (10_000, 100, 300, "B calls fewer films positive than A"),
            (10_000, 310, 290, "They differ equally in both directions"),
            (10_000, 20, 19, "They agree on almost every film"),
            (10_000, 0, 0, "They agree on almost every film"),
            (100, 6, 2, "They differ equally in both directions"),  # too few flips to tell a side
        ],
    )
    def test_what_to_do_next(self, films: int, to_positive: int, to_negative: int, says: str) -> None:
        totals = {"films": films, "to_positive": to_positive, "to_negative": to_negative}
        assert model_agreement.verdict(totals).startswith(says)


class TestModels:
    def test_the_beginning_of_an_id_is_enough(self, store: Store, tmp_path: Path) -> None:
        write_both(store, PAIRS)
        text = compared(store, tmp_path / "r.html", a=MODEL_ID[:4], b=OTHER[:1]).text
        assert f"A is model {MODEL_ID} (operating point balanced)" in text
        assert f"B is model {OTHER}" in text

    @pytest.mark.parametrize(
        ("a", "b", "says"),
        [
            ("abc", OTHER, "no model 'abc' scored here; choose from 00112233aabbccdd, ffeeddccbbaa9988"),
            (OTHER, "", "no model '' scored here"),
            (MODEL_ID, MODEL_ID[:6], "are the same model"),
        ],
    )
    def test_unknown_or_equal_models_are_refused(self, store: Store, tmp_path: Path, a: str, b: str, says: str) -> None:
        write_both(store, PAIRS)
        with pytest.raises(InputError, match=says):
            compared(store, tmp_path / "r.html", a=a, b=b)

    def test_an_ambiguous_beginning_is_refused(self, store: Store, tmp_path: Path) -> None:
        write_both(store, PAIRS)
        write_run(store, 1, [Outcome(1, probability=0.4)], model_id=MODEL_ID[:4] + "9")
        with pytest.raises(InputError, match="more than one model '0011'"):
            compared(store, tmp_path / "r.html", a=MODEL_ID[:4])

    def test_no_scan_in_common(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(3, probability=0.4)])
        write_run(store, 1, [Outcome(3, probability=0.4)], model_id=OTHER)
        with pytest.raises(InputError, match="have no scan in common"):
            compared(store, tmp_path / "r.html")
