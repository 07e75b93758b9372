"""Every verb that meets films or what was made of them, run over an archive full of planted words."""

import contextlib
import json
import subprocess
import threading
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from pipelines.contracts import IDENTITY
from pipelines.ingest.patients import SECRET_VARIABLE
from tests.cluster.ray_head import Head, running_head
from tests.deadly import DEADLY, deadly_environment
from tests.pipelines.bundles import save_untrained
from tests.planted.archive import FILM_UIDS, INSTITUTION, good_films, labels_csv, odd_files, written
from tests.planted.words import Planted, leaks


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """An archive full of planted words, a cluster to work on, and all that came out of it."""

    rayscan: str
    head: Head
    planted: Planted

    @property
    def given(self) -> Path:
        """What a person has: the films and files beside them. Nothing here is searched."""
        return self.head.folder / "in"

    @property
    def films(self) -> str:
        """The archive."""
        return str(self.given / "films")

    @property
    def out(self) -> Path:
        """What the verbs write. Beside it: what they said, their temporary files, Ray's folder."""
        return self.head.folder / "out"

    @property
    def said(self) -> Path:
        """What the verbs printed, a file each."""
        return self.head.folder / "said"

    @property
    def plain(self) -> dict[str, str]:
        """An environment without the secret of the patients."""
        return {
            **self.head.environment(),
            "RAYSCAN_CACHE": str(self.out / "cache"),
            "TMPDIR": str(self.head.folder / "tmp"),
        }

    @property
    def keyed(self) -> dict[str, str]:
        """And with it."""
        return {**self.plain, SECRET_VARIABLE: self.planted.word("the secret") * 2}

    @property
    def cluster(self) -> tuple[str, str]:
        """Options of a verb that works on the cluster."""
        return "--address", self.head.address

    def verb(self, name: str, *args: str, environment: dict[str, str] | None = None, code: int = 0) -> str:
        """A verb as a person types it, with what it printed kept; fails if it does not end with this code."""
        done = subprocess.run(
            [self.rayscan, *args], env=environment or self.keyed, capture_output=True, check=False, timeout=300
        )
        (self.said / f"{name}.stdout").write_bytes(done.stdout)
        (self.said / f"{name}.stderr").write_bytes(done.stderr)
        assert done.returncode == code, f"{name} ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
        return done.stdout.decode()


@contextlib.contextmanager
def hospital(rayscan: str, films: int) -> Iterator[Hospital]:
    """One with so many films to learn from and to score, and with all that is odd; watched while it works."""
    with running_head() as head:
        place = Hospital(rayscan=rayscan, head=head, planted=Planted())
        for folder in (place.said, place.out, place.head.folder / "tmp", place.given):
            folder.mkdir()
        good = good_films(place.planted, films)
        written(place.given / "films", good | odd_files(place.planted))
        (place.given / "labels.csv").write_bytes(labels_csv(place.planted, list(good)))
        with watched(head, place.said):
            yield place


@contextlib.contextmanager
def watched(head: Head, folder: Path) -> Iterator[None]:
    """Keep what anyone on this machine may see meanwhile: the metrics' port, the dashboard, arguments of processes."""
    ended = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        while not ended.wait(1.0):
            seen.update(_exposed(head))
            (folder / "exposed.txt").write_text("\n".join(sorted(seen)))

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _exposed(head: Head) -> Iterator[str]:
    pages = [f"{head.dashboard}/{page}" for page in ("api/jobs/", "api/v0/tasks?limit=1000", "api/v0/actors")]
    with contextlib.suppress(OSError, ValueError):
        for group in json.loads((head.folder / "ray" / "prom_metrics_service_discovery.json").read_text()):
            pages += [f"http://{target}/metrics" for target in group["targets"]]
    token = {"Authorization": f"Bearer {head.token.read_text()}"}
    for page in pages:
        asked = urllib.request.Request(page, headers=token)
        with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=5) as answer:
            yield from answer.read().decode().splitlines()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(head.folder) in " ".join(line := process.cmdline()) or "rayscan" in " ".join(line):
                yield " ".join(line)


def one_night(place: Hospital) -> None:
    """Inspect the archive, score it, ask the scores, erase patients."""
    planted, out = place.planted, str(place.out)
    labels = ("--labels", str(place.given / "labels.csv"))
    place.verb(
        "catalog", "catalog", place.films, "--inspect", *labels, "--out", f"{out}/catalog", *place.cluster, "--json"
    )
    save_untrained(place.given / "bundle")
    score = ("score", place.films, "--model", str(place.given / "bundle"), "--out", f"{out}/scores")
    place.verb("score", *score, "--thumbnails", "4", *place.cluster, "--json")
    for view in ("scores", "runs"):
        place.verb(f"query-{view}", "query", f"{out}/scores", f"SELECT * FROM {view}", "--json")
    known = [f"{who(place, number, 'PatientID')}^^^{who(place, number, 'IssuerOfPatientID')}" for number in (0, 1)]
    patients = place.given / "patients.txt"
    patients.write_text("\n".join([*known, planted.person("a patient who is not there")]))
    erase = ("erase", f"{out}/scores", "--patients", str(patients), "--yes")
    place.verb("erase-without-secret", *erase, "--debug", environment=place.plain, code=2)
    assert json.loads(place.verb("erase", *erase, "--json"))["films"] == len(known)


def who(place: Hospital, number: int, keyword: str) -> str:
    """What the header of a good film says of its patient."""
    return place.planted.word(f"{keyword} of good-{number:02d}")


def from_films_to_a_model(place: Hospital) -> str:
    """All verbs before a night; returns the bundle."""
    out, labels = str(place.out), str(place.given / "labels.csv")
    catalog = ("catalog", place.films, "--inspect", "--labels", labels, "--out")
    place.verb("catalog-keyed", *catalog, f"{out}/keyed", *place.cluster)
    place.verb("catalog-unkeyed", *catalog, f"{out}/unkeyed", *place.cluster, environment=place.plain)
    misplaced = {"label": "good-00.dcm,{}", "quote": 'good-00.dcm,"{}', "line": "good-00.dcm,0\ngood-00.dcm,0,{}"}
    for name, lines in misplaced.items():
        file = place.given / f"{name}.csv"
        file.write_text(f"path,label\n{lines.format(place.planted.word(f'misplaced {name}'))}\n")
        args = ("catalog", place.films, "--labels", str(file), "--out", f"{out}/{name}", "--debug")
        place.verb(f"catalog-{name}", *args, code=2)
    place.verb("audit", "audit", f"{out}/keyed", "--out", f"{out}/audit.html")
    place.verb("prepare", "prepare", f"{out}/keyed", "--size", "32", "--out", f"{out}/dataset", *place.cluster)
    search = ("--trials", "1", "--epochs", "1", "--family", "mlp", *place.cluster)
    place.verb("tune", "tune", f"{out}/dataset", "--out", f"{out}/study", *search)
    best, data = f"{out}/study/best", f"{out}/dataset"
    place.verb("evaluate", "evaluate", best, data, "--split", "val", "--out", f"{out}/evaluation.html")
    place.verb("agree", "agree", best, "--dataset", data)
    folds = ("--model", "mlp", "--epochs", "1", "--folds", "2", "--out", f"{out}/folds.html")
    place.verb("crossvalidate", "crossvalidate", data, *folds)
    for name in ("study", "study/best"):
        place.verb(f"report-{name.replace('/', '-')}", "report", f"{out}/{name}", "--out", f"{out}/{name[-4:]}.html")
    return best


def another_night(place: Hospital, bundle: str) -> None:
    """All verbs of scores, over films that are each read in a child: one of them kills workers.

    On a Ray of its own, whose workers inherit the secret.
    """
    out = str(place.out)
    (place.given / "films" / "deadly.png").write_bytes(DEADLY["exit"])
    path = f"{deadly_environment(place.given)}:{place.keyed.get('PYTHONPATH', '')}"
    score = ("score", place.films, "--model", bundle, "--out", f"{out}/isolated", "--shard-size", "400", "--debug")
    place.verb("dry-run", *score, "--dry-run", "--json")
    sites = ("--site-from", "institution", "--thumbnails", "4")
    place.verb("isolated-score", *score, *sites, environment={**place.keyed, "PYTHONPATH": path})
    for view in ("scores", "rejects", "runs"):
        rows = place.verb(f"isolated-query-{view}", "query", f"{out}/isolated", f"SELECT * FROM {view}", "--json")
        if view == "rejects":
            died = [Path(row["uri"]).name for row in json.loads(rows) if row["reason"] == "crashed"]
            assert died == ["deadly.png"], "the others were read in children, too, and their children live"
    place.verb("isolated-query", "query", f"{out}/isolated")
    place.verb("isolated-export", "query", f"{out}/isolated", "FROM latest", "--out", f"{out}/isolated.csv")
    place.verb("promote", "promote", f"{out}/isolated", bundle, "--as", "production")
    for name in ("models", "history", "compact", "explain"):
        place.verb(f"isolated-{name}", name, f"{out}/isolated")
    place.verb("isolated-prune", "prune", f"{out}/isolated", "--keep", "90d")
    page = f"{out}/isolated.html"
    place.verb("isolated-report", "report", f"{out}/isolated", "--out", page, "--thumbnails", "4")


def check(place: Hospital, *, nights: Collection[str]) -> None:
    """Assert that nothing planted stands anywhere but where it is promised."""
    identities = [place.out / night / "identity" for night in nights]
    hits = leaks([place.head.folder], place.planted, but=[place.given, *identities])
    # Asked for with --site-from institution, which only the isolated night was given.
    rest = [hit for hit in hits if hit.place != INSTITUTION or "/isolated" not in hit.file]
    assert not rest, "\n".join(f"{hit.place}: {hit.file}" for hit in rest[:60])
    for identity in identities:
        tables = [pq.read_table(part, partitioning=None) for part in sorted(identity.rglob("*.parquet"))]
        assert tables
        assert all(table.schema.equals(IDENTITY) for table in tables)
        held = {hit.place.partition(" ")[0] for hit in leaks([identity], place.planted)}
        assert held == set(FILM_UIDS), "the identifiers of films, and nothing else"
