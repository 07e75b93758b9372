"""Drift without labels: whether tonight's films look to the model like its validation films.

The reference is the bundle's fingerprint (`models/statistics/fingerprint.py`). Every part of a run is added to
histograms over the fingerprint's own edges, so memory is fixed whatever the size of the night, and the scores are read
once. Two statistics are computed for each quantity, because each misses shifts that the other detects:

    PSI   population stability index, sum of (q - p) ln(q / p) over the decile bins (Siddiqi 2006, Credit Risk
          Scorecards, ch. 6; there 0.1 calls for a look, 0.25 for action)
    KS    Kolmogorov-Smirnov distance, the largest gap between the two distribution functions, on the percentiles

A level needs an effect and significance. Under no drift, PSI / (1/n + 1/m) of n films and m reference films is
chi-squared with B - 1 degrees of freedom (Yurdakul 2018, Statistical Properties of Population Stability Index; by
Taylor, PSI is the sum of (q - p)^2 / p, and q - p has variance p (1 - p) (1/n + 1/m)); its expectation is subtracted.
So a small site does not alarm by chance, and a hundred thousand films do not alarm over an irrelevant difference. Not
detected: a model that errs more on films that look the same; that takes labels.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import NormalDist
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.gate.checks import REFUSED
from models.statistics.fingerprint import QUANTITIES
from pipelines.contracts import Reason, Status

Level = Literal["too_few", "ok", "warn", "alarm"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""From unknown to worst."""

REJECT_SHARE: Final = "reject_share"
UNFAMILIAR_SHARE: Final = "unfamiliar_share"
OUTSIDE_SHARE: Final = "outside_share"
OF_OTHERS: Final = {UNFAMILIAR_SHARE: Reason.UNFAMILIAR, OUTSIDE_SHARE: Reason.OUTSIDE_INTENDED_USE}
"""Shares of films of other patients than the model's: by their pixels, and by their headers."""
OTHER_SITES: Final = "other sites"
SITES: Final = 200
"""Sites with a row of their own: the first in the order of the plan. Films of the rest are `other sites`."""

MIN_FILMS: Final = 50
"""With fewer films, tonight or in the reference, nothing is judged."""
NIGHT_ALPHA: Final = 0.01
"""Probability that a night without drift has any finding above `ok`; divided equally among all its comparisons."""

PSI_LEVELS: Final = (0.1, 0.25)
KS_LEVELS: Final = (0.125, 0.2)
"""The KS distance of a shifted normal distribution at those PSI: a shift of d standard deviations has PSI d^2 and KS
2 Phi(d / 2) - 1."""
SHARE_LEVELS: Final = (0.2, 0.5)
"""Cohen's h, 2 asin sqrt(p) - 2 asin sqrt(q): a small and a medium effect (Cohen 1988, Statistical Power Analysis,
ch. 6). Starting from 2 % of the films rejected, these are 6 % and 15 %."""

_ALL, _OTHERS = 0, 1
LEAST_READ: Final = 10
"""Films of which the unfamiliar ones are counted, at least: how many there may be is known without earlier nights."""
MOST: Final = 0.5
"""Share of unfamiliar films from which the patients are others than the model's."""
NOT_THESE: Final = "these are not the patients this model was made for"
_OTHERS_ARE: Final = {
    UNFAMILIAR_SHARE: "are unfamiliar to the model",
    OUTSIDE_SHARE: "are outside its intended use by their headers",
}
_NEEDED: Final = ("site", "status", "reason", *QUANTITIES)


@dataclass(frozen=True, kw_only=True)
class DriftFinding:
    """How one quantity of one site's films compares with the reference."""

    site: str | None
    """None: all sites."""
    quantity: str
    """One of `models.statistics.fingerprint.QUANTITIES`, `reject_share`, `unfamiliar_share` or `outside_share`."""
    n: int
    """Films compared: the scored ones; for `reject_share` those scored, rejected or unreadable; for `unfamiliar_share`
    those scored or unfamiliar, for `outside_share` those scored or outside the intended use."""
    psi: float | None
    """PSI less its expectation without drift, at least 0."""
    ks: float | None
    level: Level
    note: str
    """An explanation; empty at level `ok`."""
    share: float | None = None
    """The share of n that was rejected or unreadable (`reject_share`), is unfamiliar (`unfamiliar_share`), or is
    outside the intended use (`outside_share`)."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; fields of later versions are ignored. Raises `TypeError` if one is missing."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: inner for name, inner in value.items() if name in known})


def worst_level(findings: Sequence[DriftFinding]) -> Level:
    """The worst of their levels; `too_few` if there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="too_few")


class _Histogram:
    """Counts of one quantity over the bins and the percentiles of its reference, one row per site."""

    def __init__(self, reference: Mapping[str, Sequence[float]], films: int) -> None:
        # Scores are float32, so ties with the reference are found in float32.
        self.edges = np.asarray(reference["edges"], dtype=np.float32)
        self.films = films
        self.shares = np.asarray(reference["shares"], dtype=np.float64)
        self.grid, first = np.unique(np.asarray(reference["percentiles"], dtype=np.float32), return_index=True)
        last = np.append(first[1:], 101) - 1
        # Shares of the reference below each grid value, and up to it; they differ if many films share a value.
        self.below, self.up_to = first / 100, last / 100
        self.bins = np.zeros((SITES + 2, len(self.edges) + 1), dtype=np.int64)
        # Slot 2k: between grid k - 1 and grid k; slot 2k + 1: on grid k.
        self.slots = np.zeros((SITES + 2, 2 * len(self.grid) + 1), dtype=np.int64)

    def add(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        """Count values [N] in the rows [N] of their sites (below 0: no site) and in the row of all sites."""
        known = np.isfinite(values)
        rows, values = rows[known], values[known]
        bins = np.searchsorted(self.edges, values, side="right")
        slots = np.searchsorted(self.grid, values, side="left") + np.searchsorted(self.grid, values, side="right")
        of_site = rows >= 0
        for counts, places in ((self.bins, bins), (self.slots, slots)):
            counts[_ALL] += np.bincount(places, minlength=counts.shape[1])
            np.add.at(counts, (rows[of_site], places[of_site]), 1)

    def n(self, row: int) -> int:
        return int(self.bins[row].sum())

    def psi(self, row: int) -> float:
        """PSI without its expectation subtracted. Half a film added to every bin on both sides keeps the log finite."""
        new, n, bins = self.bins[row], self.n(row), len(self.shares)
        q = (new + 0.5) / (n + 0.5 * bins)
        p = (self.shares * self.films + 0.5) / (self.films + 0.5 * bins)
        return float(((q - p) * np.log(q / p)).sum())

    def ks(self, row: int) -> float:
        """KS distance, within 0.01 + 1 / m of the one computed from the films themselves."""
        cumulated = self.slots[row].cumsum() / self.n(row)
        below, up_to = cumulated[0:-1:2], cumulated[1::2]
        return float(max(np.abs(below - self.below).max(), np.abs(up_to - self.up_to).max()))

    def above_median(self, row: int) -> float:
        """Share of the films above the reference's median."""
        at = int(np.searchsorted(self.up_to, 0.5))
        return float(self.slots[row, 2 * at + 2 :].sum() / self.n(row))


class DriftTally:
    """Adds up the parts of a run; `findings` compares them with the fingerprint and with earlier runs.

    `fingerprint` is the bundle's; without one (None) only the share of rejects is compared.
    """

    def __init__(self, fingerprint: Mapping[str, Any] | None) -> None:
        self._histograms: dict[str, _Histogram] = {
            name: _Histogram(fingerprint[name], int(fingerprint["films"]))
            for name in QUANTITIES
            if fingerprint is not None and fingerprint.get(name)
        }
        self._rows: dict[str, int] = {}
        """Site -> its row in the counts."""
        self._seen = np.zeros(SITES + 2, dtype=np.int64)
        self._left_out = np.zeros(SITES + 2, dtype=np.int64)
        self._scored = np.zeros(SITES + 2, dtype=np.int64)
        self._others = {name: np.zeros(SITES + 2, dtype=np.int64) for name in OF_OTHERS}

    def add(self, part: pa.Table) -> None:
        """Add rows of contracts.SCORES: columns site, status and those of `QUANTITIES`.

        Failed rows are skipped: those films have not been read yet. Films without a site count for all sites only.
        """
        table = part.select(_NEEDED)
        table = table.filter(pc.not_equal(table["status"], Status.FAILED.value))
        rows = self._rows_of(table["site"])
        scored = pc.equal(table["status"], Status.SCORED.value).to_numpy()
        others = {
            name: pc.fill_null(pc.equal(table["reason"], reason.value), False).to_numpy()
            for name, reason in OF_OTHERS.items()
        }
        for counts, counted in (
            (self._seen, np.ones(len(rows), dtype=bool)),
            (self._left_out, ~scored),
            (self._scored, scored),
            *((self._others[name], found) for name, found in others.items()),
        ):
            counts[_ALL] += int(counted.sum())
            np.add.at(counts, rows[counted & (rows >= 0)], 1)
        for name, histogram in self._histograms.items():
            # A null becomes NaN
            values = table[name].cast(pa.float32()).to_numpy()[scored]
            histogram.add(rows[scored], values)

    def findings(self, earlier: Sequence[Mapping[str, Any]] = ()) -> list[DriftFinding]:
        """Findings for all sites first, then for each site by name; every quantity of each.

        `earlier`: run.json of earlier nights of this model, for the share of rejects: `counts`, and `drift` by site.
        """
        names: list[tuple[str | None, int]] = [(None, _ALL), *sorted(self._rows.items())]
        if self._seen[_OTHERS]:
            names.append((OTHER_SITES, _OTHERS))
        before = _earlier_rejects(earlier)
        # PSI and KS of every quantity, and the shares of rejects and of films of other patients
        large = sum(self._seen[row] >= MIN_FILMS for _, row in names)
        alpha = NIGHT_ALPHA / max(1, large * (2 * len(self._histograms) + 1 + len(OF_OTHERS)))
        findings = []
        for site, row in names:
            findings += [self._of_quantity(name, site, row, alpha) for name in QUANTITIES]
            findings.append(self._of_rejects(site, row, before.get(site, (0, 0)), alpha))
            findings += [self._of_others(name, site, row, alpha) for name in OF_OTHERS]
        return findings

    def _rows_of(self, sites: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """The row of each film's site; -1 without a site."""
        encoded = sites.cast(pa.string()).combine_chunks().dictionary_encode()
        places = []
        for site in encoded.dictionary.to_pylist():
            if site not in self._rows and len(self._rows) < SITES:
                self._rows[site] = _OTHERS + 1 + len(self._rows)
            places.append(self._rows.get(site, _OTHERS))
        indices = encoded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        rows: npt.NDArray[np.int64] = np.array([*places, -1], dtype=np.int64)[indices]
        return rows

    def _of_quantity(self, name: str, site: str | None, row: int, alpha: float) -> DriftFinding:
        histogram = self._histograms.get(name)
        if histogram is None:
            note = "the bundle has no fingerprint of this; a newly trained model has one"
            return _too_few(name, site, 0, note)
        n, m = histogram.n(row), histogram.films
        if min(n, m) < MIN_FILMS:
            which = f"{n} films" if n <= m else f"{m} films in the reference"
            return _too_few(name, site, n, f"{which}: fewer than {MIN_FILMS} are not judged")
        noise = 1 / n + 1 / m
        freedom = len(histogram.shares) - 1
        raw = histogram.psi(row)
        psi, ks = max(0.0, raw - freedom * noise), histogram.ks(row)
        levels = (
            _level(psi, PSI_LEVELS, exceeds_chi_squared(raw / noise, freedom, alpha)),
            _level(ks, KS_LEVELS, ks > math.sqrt(-math.log(alpha / 2) / 2 * noise)),
        )
        level = max(levels, key=LEVELS.index)
        note = ""
        if level != "ok":
            note = f"{100 * histogram.above_median(row):.0f} % of them above the reference's median"
            if name == "probability":
                note += "; a change of prevalence does this too"
        return DriftFinding(site=site, quantity=name, n=n, psi=round(psi, 4), ks=round(ks, 4), level=level, note=note)

    def _of_rejects(self, site: str | None, row: int, earlier: tuple[int, int], alpha: float) -> DriftFinding:
        """Tonight's share of rejects against that of the earlier runs, compared by Cohen's h."""
        n, m = int(self._seen[row]), earlier[0]
        share = float(self._left_out[row] / n) if n else None
        if share is None or n < MIN_FILMS:
            return _too_few(REJECT_SHARE, site, n, f"{n} films: fewer than {MIN_FILMS} are not judged", share)
        if m < MIN_FILMS:
            note = f"{m} films in the earlier runs: fewer than {MIN_FILMS} are not judged"
            return _too_few(REJECT_SHARE, site, n, note, share)
        before = earlier[1] / m
        effect = abs(2 * math.asin(math.sqrt(share)) - 2 * math.asin(math.sqrt(before)))
        # h has variance 1/n + 1/m whatever the shares; the plain z test alarms too often at small shares.
        significant = effect / math.sqrt(1 / n + 1 / m) > NormalDist().inv_cdf(1 - alpha / 2)
        level = _level(effect, SHARE_LEVELS, significant)
        note = "" if level == "ok" else f"{100 * share:.1f} % tonight, {100 * before:.1f} % in the earlier runs"
        return DriftFinding(
            site=site, quantity=REJECT_SHARE, n=n, psi=None, ks=None, level=level, note=note, share=round(share, 6)
        )

    def _of_others(self, name: str, site: str | None, row: int, alpha: float) -> DriftFinding:
        """Tonight's share of unfamiliar films, or of those outside the intended use.

        Compared with the share of the model's own kind of films that may be unfamiliar. Of films outside there may be
        as many: hardly any archive is free of them.
        """
        from scipy.special import bdtrc  # noqa: PLC0415 (only a run that has scores needs it)

        found = int(self._others[name][row])
        n = int(self._scored[row]) + found
        share = found / n if n else None
        if share is None or n < LEAST_READ:
            return _too_few(name, site, n, f"{n} films: fewer than {LEAST_READ} are not judged", share)
        effect = 2 * math.asin(math.sqrt(share)) - 2 * math.asin(math.sqrt(REFUSED))
        level = _level(effect, SHARE_LEVELS, found > 0 and bdtrc(found - 1, n, REFUSED) < alpha)
        note = ""
        if level != "ok":
            of_them = f"{100 * share:.0f} % of {n} films {_OTHERS_ARE[name]}"
            usual = f"{100 * REFUSED:.0f} % at most would be of films like those it learned from"
            note = f"{NOT_THESE}: {of_them}" if share >= MOST else f"{of_them}; {usual}"
        return DriftFinding(
            site=site, quantity=name, n=n, psi=None, ks=None, level=level, note=note, share=round(share, 6)
        )


def others_than_the_models(findings: Sequence[DriftFinding]) -> list[DriftFinding]:
    """Those that say that most films, of all sites or of one, are of other patients than the model's."""
    return [
        finding
        for finding in findings
        if finding.quantity in OF_OTHERS and finding.level == "alarm" and (finding.share or 0) >= MOST
    ]


def exceeds_chi_squared(value: float, freedom: int, alpha: float) -> bool:
    """Whether a chi-squared variable would be as large as this with a probability of less than `alpha`."""
    # scipy.stats.chi2.isf is the same number, but its import takes 1.1 s of CPU and 70 MB, this one 0.3 s and 24 MB
    from scipy.special import chdtri  # noqa: PLC0415 (only a run that has scores needs it)

    return bool(value > chdtri(freedom, alpha))


def _level(effect: float, bounds: tuple[float, float], significant: bool) -> Level:
    if not significant or effect < bounds[0]:
        return "ok"
    return "warn" if effect < bounds[1] else "alarm"


def _too_few(quantity: str, site: str | None, n: int, note: str, share: float | None = None) -> DriftFinding:
    return DriftFinding(site=site, quantity=quantity, n=n, psi=None, ks=None, level="too_few", note=note, share=share)


def _earlier_rejects(earlier: Sequence[Mapping[str, Any]]) -> dict[str | None, tuple[int, int]]:
    """Films seen, and those rejected or unreadable, in earlier runs: by site, None for all sites."""
    seen: Counter[str | None] = Counter()
    left_out: Counter[str | None] = Counter()
    for record in earlier:
        counts = record.get("counts") or {}
        rejected = counts.get("rejected", 0) + counts.get("unreadable", 0)
        seen[None] += counts.get("scored", 0) + rejected
        left_out[None] += rejected
        for value in record.get("drift") or ():
            if value["quantity"] == REJECT_SHARE and value["site"] is not None and value.get("share") is not None:
                seen[value["site"]] += value["n"]
                left_out[value["site"]] += round(value["n"] * value["share"])
    return {site: (n, left_out[site]) for site, n in seen.items()}
