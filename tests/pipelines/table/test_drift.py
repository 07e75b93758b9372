"""Drift is found where films differ, not found where they do not, and the figures are those of the films themselves."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ks_2samp, norm

from models.statistics.fingerprint import QUANTITIES, reference
from pipelines.contracts import SCORES
from pipelines.table import drift
from pipelines.table.drift import (
    LEVELS,
    MIN_FILMS,
    NOT_THESE,
    OTHER_SITES,
    OUTSIDE_SHARE,
    REJECT_SHARE,
    SITES,
    UNFAMILIAR_SHARE,
    DriftFinding,
    DriftTally,
    exceeds_chi_squared,
    others_than_the_models,
    worst_level,
)

Values = dict[str, npt.NDArray[np.float32]]


def films(n: int, seed: int) -> Values:
    """Quantities of n films: probabilities crowd at both ends, half of the distances share three values."""
    rng = np.random.default_rng(seed)
    values = {
        "probability": np.clip(rng.beta(0.3, 0.5, n) * 1.2 - 0.1, 0, 1),
        "grey_mean": rng.normal(120, 20, n),
        "grey_spread": rng.normal(50, 8, n),
        "ood_score": np.where(rng.random(n) < 0.5, rng.chisquare(10, n), rng.integers(5, 8, n)),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def fingerprint_of(values: Values) -> dict[str, Any]:
    """As a bundle holds it: through JSON."""
    made = {"films": len(values["probability"]), **{name: reference(values[name]) for name in QUANTITIES}}
    loaded: dict[str, Any] = json.loads(json.dumps(made))
    return loaded


def part(values: Values, sites: list[str | None], statuses: list[str] | None = None) -> pa.Table:
    """Rows of scores; those that are not `scored` keep what they were given."""
    columns: dict[str, Any] = {name: pa.array(value, pa.float32()) for name, value in values.items()}
    columns |= {"site": pa.array(sites, pa.string()), "status": statuses or ["scored"] * len(sites)}
    columns["reason"] = pa.nulls(len(sites), pa.string())
    return pa.table({name: columns[name] for name in SCORES.names if name in columns})


def findings_of(reference_films: Values, tonight: Values, site: str | None = "north") -> dict[tuple[Any, str], Any]:
    tally = DriftTally(fingerprint_of(reference_films))
    tally.add(part(tonight, [site] * len(tonight["probability"])))
    return by_key(tally.findings())


def by_key(findings: list[DriftFinding]) -> dict[tuple[str | None, str], DriftFinding]:
    return {(finding.site, finding.quantity): finding for finding in findings}


class TestLevels:
    @pytest.mark.parametrize("n", [60, 250, 3000])
    def test_films_of_the_same_source_drift_in_few_nights(self, n: int) -> None:
        pool = films(20_000, seed=1)
        rng = np.random.default_rng(n)
        levels = []
        for _ in range(100):
            drawn = rng.choice(20_000, n + 600, replace=False)
            known, new = ({name: value[at] for name, value in pool.items()} for at in (drawn[n:], drawn[:n]))
            tally = DriftTally(fingerprint_of(known))
            tally.add(part(new, list(rng.choice(["north", "south"], n))))
            levels.append(worst_level(tally.findings()))
        assert levels.count("ok") >= 95

    @pytest.mark.parametrize(("shift", "level"), [(0.1, "ok"), (0.42, "warn"), (1.0, "alarm")])
    def test_a_shift_is_judged_by_its_size_not_by_the_number_of_films(self, shift: float, level: str) -> None:
        known, new = films(5000, seed=1), films(50_000, seed=2)
        new["grey_mean"] += np.float32(20 * shift)
        found = findings_of(known, new)
        assert found[None, "grey_mean"].level == level
        assert found["north", "grey_mean"].level == level
        assert found[None, "grey_spread"].level == "ok"

    def test_the_distances_that_ask_for_a_look_are_those_of_the_same_shift(self) -> None:
        for psi, ks in zip(drift.PSI_LEVELS, drift.KS_LEVELS, strict=True):
            assert 2 * norm.cdf(np.sqrt(psi) / 2) - 1 == pytest.approx(ks, abs=0.004)

    def test_one_site_drifts_and_is_named(self) -> None:
        known, new = films(800, seed=1), films(2000, seed=2)
        south = np.arange(2000) % 10 == 0
        new["grey_mean"][south] += 60
        tally = DriftTally(fingerprint_of(known))
        tally.add(part(new, ["south" if here else "north" for here in south]))
        found = by_key(tally.findings())
        assert found["south", "grey_mean"].level == "alarm"
        assert "100 % of them above the reference's median" in found["south", "grey_mean"].note
        assert {f.level for key, f in found.items() if key[0] == "north" and key[1] in QUANTITIES} == {"ok"}

    def test_more_patients_with_pneumonia_are_said_to_move_the_probability(self) -> None:
        known, new = films(800, seed=1), films(2000, seed=2)
        new["probability"] = np.sqrt(new["probability"])
        finding = findings_of(known, new)[None, "probability"]
        assert finding.level in ("warn", "alarm")
        assert "prevalence" in finding.note

    @pytest.mark.parametrize(("m", "n"), [(800, MIN_FILMS - 1), (MIN_FILMS - 1, 800)])
    def test_few_films_tell_nothing_however_far_they_lie(self, m: int, n: int) -> None:
        known, new = films(m, seed=1), films(n, seed=2)
        new["grey_mean"] += 200
        finding = findings_of(known, new)[None, "grey_mean"]
        assert (finding.level, finding.n, finding.psi) == ("too_few", n, None)
        assert f"{MIN_FILMS - 1} films" in finding.note

    def test_worst(self) -> None:
        def at(level: Any) -> DriftFinding:
            return DriftFinding(site=None, quantity="probability", n=1, psi=0, ks=0, level=level, note="")

        assert worst_level([]) == "too_few"
        assert worst_level([at("too_few"), at("ok")]) == "ok"
        assert worst_level([at("warn"), at("alarm"), at("ok")]) == "alarm"
        assert LEVELS == ("too_few", "ok", "warn", "alarm")


class TestFigures:
    @given(
        seed=st.integers(0, 1000),
        m=st.integers(MIN_FILMS, 600),
        n=st.integers(MIN_FILMS, 600),
        shift=st.sampled_from([0.0, 0.3, 5.0]),
        steps=st.sampled_from([None, 40.0, 4.0]),
    )
    @settings(max_examples=60, deadline=None)
    def test_the_distance_is_that_of_the_films_within_the_grid(
        self, seed: int, m: int, n: int, shift: float, steps: float | None
    ) -> None:
        known, new = films(m, seed), films(n, seed + 5000)
        for values, at in ((known, 0.0), (new, shift)):
            grey = values["grey_mean"] + np.float32(20 * at)
            values["grey_mean"] = grey if steps is None else (np.round(grey / steps) * steps).astype(np.float32)
        found = findings_of(known, new)
        for name in QUANTITIES:
            exact = ks_2samp(known[name], new[name], method="asymp").statistic
            assert found[None, name].ks == pytest.approx(exact, abs=0.0101 + 1 / m)

    @given(seed=st.integers(0, 1000), m=st.integers(MIN_FILMS, 600), n=st.integers(MIN_FILMS, 600))
    @settings(max_examples=30, deadline=None)
    def test_the_index_is_that_of_the_films_less_what_chance_gives(self, seed: int, m: int, n: int) -> None:
        known, new = films(m, seed), films(n, seed + 5000)
        finding = findings_of(known, new)[None, "grey_mean"]
        edges = np.percentile(known["grey_mean"].astype(np.float64), np.arange(10, 100, 10))
        p, q = (
            (np.histogram(side["grey_mean"], [-np.inf, *edges, np.inf])[0] + 0.5) / (len(side["grey_mean"]) + 5)
            for side in (known, new)
        )
        raw = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
        assert finding.psi == pytest.approx(max(0.0, raw - 9 * (1 / n + 1 / m)), abs=2e-3)

    def test_on_average_no_drift_is_an_index_of_nought(self) -> None:
        raws = []
        for seed in range(150):
            known, new = films(400, seed), films(200, seed + 5000)
            tally = DriftTally(fingerprint_of(known))
            tally.add(part(new, [None] * 200))
            raws.append(tally._histograms["grey_mean"].psi(0))
        assert np.mean(raws) == pytest.approx(9 * (1 / 400 + 1 / 200), rel=0.1)

    @pytest.mark.parametrize("freedom", [1, 4, 9])
    @pytest.mark.parametrize("alpha", [1e-2, 1e-3, 1e-5, 1e-18])
    def test_the_limit_of_significance_is_the_exact_quantile(self, alpha: float, freedom: int) -> None:
        limit = chi2.isf(alpha, freedom)
        assert exceeds_chi_squared(limit * (1 + 1e-6), freedom, alpha)
        assert not exceeds_chi_squared(limit * (1 - 1e-6), freedom, alpha)

    def test_a_reference_of_one_value(self) -> None:
        known, new = films(100, seed=1), films(100, seed=2)
        known["grey_mean"][:] = new["grey_mean"][:] = 7
        same = findings_of(known, new)[None, "grey_mean"]
        new["grey_mean"][:] = 8
        other = findings_of(known, new)[None, "grey_mean"]
        assert (same.level, same.ks) == ("ok", 0)
        assert (other.level, other.ks) == ("alarm", 1)


class TestTally:
    @given(cuts=st.lists(st.integers(0, 400), max_size=6), seed=st.integers(0, 100))
    @settings(max_examples=30, deadline=None)
    def test_any_cut_into_parts_gives_the_same(self, cuts: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        sites: list[str | None] = [None if s == "none" else str(s) for s in rng.choice(["a", "b", "none"], 400)]
        statuses = [
            str(s) for s in rng.choice(["scored", "rejected", "unreadable", "failed"], 400, p=[0.7, 0.1, 0.1, 0.1])
        ]
        table = part(films(400, seed), sites, statuses)
        known = fingerprint_of(films(300, seed=7))
        whole, pieces = DriftTally(known), DriftTally(known)
        whole.add(table)
        bounds = [0, *sorted(cuts), 400]
        for start, end in pairwise(bounds):
            pieces.add(table.slice(start, end - start))
        assert pieces.findings() == whole.findings()

    def test_only_scored_films_are_compared_and_nulls_are_none_of_them(self) -> None:
        new = films(400, seed=2)
        new["ood_score"][:50] = np.nan
        statuses = ["scored"] * 300 + ["rejected"] * 60 + ["unreadable"] * 30 + ["failed"] * 10
        table = part(new, ["north"] * 400, statuses)
        nulled = pa.array([None, *new["grey_mean"][1:].tolist()], pa.float32())
        table = table.set_column(table.column_names.index("grey_mean"), "grey_mean", nulled)
        tally = DriftTally(fingerprint_of(films(300, seed=1)))
        tally.add(table)
        found = by_key(tally.findings())
        assert {name: found["north", name].n for name in (*QUANTITIES, REJECT_SHARE)} == {
            "probability": 300,
            "grey_mean": 299,
            "grey_spread": 300,
            "ood_score": 250,
            REJECT_SHARE: 390,
        }
        assert found["north", REJECT_SHARE].share == pytest.approx(90 / 390, abs=1e-6)

    def test_sites_without_end_are_lumped(self) -> None:
        tally = DriftTally(fingerprint_of(films(100, seed=1)))
        n = SITES + 70
        new = films(n, seed=2)
        tally.add(part(new, [f"site-{number:03d}" for number in range(n)]))
        tally.add(part(new, [f"site-{number:03d}" for number in range(n)]))
        findings = tally.findings()
        sites = list(dict.fromkeys(finding.site for finding in findings))
        assert sites == [None, *(f"site-{number:03d}" for number in range(SITES)), OTHER_SITES]
        found = by_key(findings)
        assert found["site-000", "probability"].n == 2
        assert found[OTHER_SITES, "probability"].n == 140
        assert found[None, "probability"].n == 2 * n

    def test_films_without_a_site_count_for_all(self) -> None:
        tally = DriftTally(fingerprint_of(films(100, seed=1)))
        tally.add(part(films(100, seed=2), [None] * 60 + ["north"] * 40))
        found = by_key(tally.findings())
        assert {site for site, _ in found} == {None, "north"}
        assert (found[None, "probability"].n, found["north", "probability"].n) == (100, 40)

    def test_a_bundle_without_a_fingerprint_says_so_and_rejects_are_still_watched(self) -> None:
        tally = DriftTally(None)
        tally.add(part(films(200, seed=2), ["north"] * 200, ["scored"] * 100 + ["rejected"] * 100))
        found = by_key(tally.findings([{"counts": {"scored": 990, "rejected": 10}}]))
        assert all(found[None, name].level == "too_few" for name in QUANTITIES)
        assert "no fingerprint" in found[None, "probability"].note
        assert found[None, REJECT_SHARE].level == "alarm"

    def test_an_empty_night(self) -> None:
        tally = DriftTally(fingerprint_of(films(100, seed=1)))
        tally.add(part(films(0, seed=2), []))
        findings = tally.findings()
        assert [finding.quantity for finding in findings] == [
            *QUANTITIES,
            REJECT_SHARE,
            UNFAMILIAR_SHARE,
            OUTSIDE_SHARE,
        ]
        assert {(finding.level, finding.n) for finding in findings} == {("too_few", 0)}

    def test_findings_survive_json(self) -> None:
        tally = DriftTally(fingerprint_of(films(100, seed=1)))
        tally.add(part(films(100, seed=2), ["north"] * 100))
        findings = tally.findings()
        stored = json.loads(json.dumps([{**finding.to_json(), "of a later version": 1} for finding in findings]))
        assert [DriftFinding.from_json(value) for value in stored] == findings


class TestUnfamiliar:
    def findings(
        self, unfamiliar: int, n: int, sites: Sequence[str], reason: str = "unfamiliar"
    ) -> dict[tuple[str | None, str], DriftFinding]:
        tally = DriftTally(None)
        statuses = ["rejected"] * unfamiliar + ["scored"] * (n - unfamiliar) + ["rejected", "unreadable", "failed"]
        reasons = [reason] * unfamiliar + [None] * (n - unfamiliar) + ["blank", "truncated", "worker_lost"]
        table = part(films(n + 3, seed=2), [*sites, "north", "north", "north"], statuses)
        tally.add(table.set_column(table.column_names.index("reason"), "reason", pa.array(reasons, pa.string())))
        return by_key(tally.findings())

    @pytest.mark.parametrize(
        ("unfamiliar", "n", "level"),
        [(0, 9, "too_few"), (9, 9, "too_few"), (1, 10, "ok"), (8, 10, "alarm"), (25, 1000, "ok"), (80, 1000, "warn")],
    )
    def test_more_than_may_be_of_the_models_own_patients(self, unfamiliar: int, n: int, level: str) -> None:
        finding = self.findings(unfamiliar, n, ["north"] * n)[None, UNFAMILIAR_SHARE]
        assert (finding.level, finding.n) == (level, n), "neither blank nor broken films count"
        assert finding.share == pytest.approx(unfamiliar / n)

    def test_of_a_night_of_other_patients_the_first_line_says_so(self) -> None:
        found = self.findings(60, 120, ["south"] * 60 + ["north"] * 60)
        others = others_than_the_models(list(found.values()))
        assert [finding.site for finding in others] == [None, "south"]
        assert others[0].note == f"{NOT_THESE}: 50 % of 120 films are unfamiliar to the model"
        assert found["north", UNFAMILIAR_SHARE].level == "ok"
        assert others_than_the_models(list(self.findings(30, 100, ["north"] * 100).values())) == []

    def test_films_outside_the_intended_use_are_other_patients_too(self) -> None:
        found = self.findings(90, 120, ["south"] * 60 + ["north"] * 60, reason="outside_intended_use")
        assert (found[None, UNFAMILIAR_SHARE].level, found[None, UNFAMILIAR_SHARE].n) == ("ok", 30)
        others = others_than_the_models(list(found.values()))
        assert [(finding.site, finding.quantity) for finding in others] == [
            (None, OUTSIDE_SHARE), ("north", OUTSIDE_SHARE), ("south", OUTSIDE_SHARE),
        ]  # fmt: skip
        assert others[0].note == f"{NOT_THESE}: 75 % of 120 films are outside its intended use by their headers"


class TestRejects:
    def finding(self, rejected: int, n: int, *earlier: Mapping[str, Any], site: str | None = None) -> DriftFinding:
        tally = DriftTally(None)
        tally.add(part(films(n, seed=2), ["north"] * n, ["rejected"] * rejected + ["scored"] * (n - rejected)))
        return by_key(tally.findings(earlier))[site, REJECT_SHARE]

    @pytest.mark.parametrize(
        ("rejected", "n", "level"),
        [
            (20, 1000, "ok"),
            (25, 1000, "ok"),
            (80, 1000, "warn"),
            (200, 1000, "alarm"),
            (2_500, 100_000, "ok"),  # significant, but nothing to a person
            (5, 60, "ok"),  # 8 %, but chance
        ],
    )
    def test_against_two_percent(self, rejected: int, n: int, level: str) -> None:
        night = {"counts": {"scored": 4900, "rejected": 60, "unreadable": 40, "failed": 3000}}
        assert self.finding(rejected, n, night, night).level == level

    def test_both_shares_are_named(self) -> None:
        finding = self.finding(200, 1000, {"counts": {"scored": 4900, "rejected": 100}})
        assert finding.note == "20.0 % tonight, 2.0 % in the earlier runs"

    def test_fewer_rejects_than_ever_are_told_too(self) -> None:
        assert self.finding(0, 2000, {"counts": {"scored": 800, "rejected": 200}}).level == "alarm"

    def test_a_first_night_has_nothing_to_compare_with(self) -> None:
        finding = self.finding(200, 1000)
        assert (finding.level, finding.share) == ("too_few", 0.2)
        assert "0 films in the earlier runs" in finding.note

    def test_a_site_is_compared_with_its_own_past(self) -> None:
        def night(site: str, share: float) -> dict[str, Any]:
            past = DriftFinding(
                site=site, quantity=REJECT_SHARE, n=1000, psi=None, ks=None, level="ok", note="", share=share
            )
            return {"counts": {"scored": 1000}, "drift": [past.to_json()]}

        assert self.finding(200, 1000, night("north", 0.21), site="north").level == "ok"
        assert self.finding(200, 1000, night("north", 0.02), site="north").level == "alarm"
        assert self.finding(200, 1000, night("south", 0.02), site="north").level == "too_few"
