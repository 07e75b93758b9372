"""A corner of the archive that cannot be read: which folder it is, and what a night makes of it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.bundle import Bundle, load_bundle
from pipelines.errors import IncompleteError
from pipelines.phantom import encode
from pipelines.scoring.films import FAILURES_IN_A_ROW
from pipelines.scoring.layout import Layout, choose_layout
from pipelines.scoring.plan import Plan, make_plan
from pipelines.scoring.quarantine import Quarantine, StoreDownError, corners, find_corner
from pipelines.scoring.score import ScoreShard
from pipelines.scoring.sink import part_key
from pipelines.storage import Store, open_store
from tests.chaos.fault_proxy import Faults, faulty
from tests.servers import S3Server

FILM = encode(np.random.default_rng(9).integers(0, 255, (40, 48), dtype=np.uint8), "png")
SITES = ("east", "north", "west")
PLANNED = [f"s3://b/archive/{site}/{study}/{n}.dcm" for site in SITES for study in "pqr" for n in "12"]


def found(forbidden: tuple[str, ...], refused: list[str], beside: list[str] | None = None) -> str | None:
    return find_corner(
        refused,
        PLANNED,
        lambda prefix: [uri for uri in beside or [] if not uri.startswith(prefix)],
        lambda uri: not uri.startswith(forbidden),
    )


def below(prefix: str) -> list[str]:
    return [uri for uri in PLANNED if uri.startswith(prefix)]


@pytest.mark.parametrize(
    ("forbidden", "corner"),
    [
        (("s3://b/archive/north/q/",), "s3://b/archive/north/q/"),
        (("s3://b/archive/north/",), "s3://b/archive/north/"),
        (("s3://b/archive/north/p/", "s3://b/archive/north/q/"), "s3://b/archive/north/q/"),
    ],
)
def test_the_corner_is_the_largest_folder_without_a_readable_film(forbidden: tuple[str, ...], corner: str) -> None:
    assert found(forbidden, below("s3://b/archive/north/q/")) == corner


def test_a_store_without_a_readable_film_is_down() -> None:
    with pytest.raises(StoreDownError):
        found(("s3://b/",), below("s3://b/archive/north/q/"))


def test_films_that_can_be_read_again_are_in_no_corner() -> None:
    assert found((), below("s3://b/archive/north/q/")) is None


def test_single_films_of_a_folder_are_no_corner() -> None:
    assert found(("s3://b/archive/north/q/1",), ["s3://b/archive/north/q/1.dcm"]) is None


def test_a_plan_that_lies_in_the_corner_looks_beside_it() -> None:
    everything = ("s3://b/archive/east/", "s3://b/archive/north/", "s3://b/archive/west/")
    refused = below("s3://b/archive/north/q/")
    assert found(everything, refused, ["s3://b/other/1.dcm"]) == "s3://b/archive/"
    with pytest.raises(StoreDownError):
        found(("s3://b/",), refused, ["s3://b/other/1.dcm"])


class TestANight:
    """Forty films in each of three folders of a real server, one of which answers as real stores do."""

    SHARD = 20
    PER_FOLDER = FAILURES_IN_A_ROW + 8

    @pytest.fixture
    def model(self, bundle: Path) -> Bundle:
        return load_bundle(bundle)

    @pytest.fixture
    def layout(self) -> Layout:
        return choose_layout(1, 0, 1)

    @pytest.fixture
    def faults(self, s3_conditional: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
        with faulty(s3_conditional, faults := Faults()) as front:
            monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
            yield faults

    @pytest.fixture
    def archive(self, s3_conditional: S3Server, faults: Faults) -> Store:
        archive = open_store(f"{s3_conditional.bucket()}/archive")
        for folder in ("east", "north/2025", "north/2026"):
            for number in range(self.PER_FOLDER):
                archive.put(f"{folder}/{number}.png", FILM)
        return archive

    def planned(self, out: Store, archive: Store, bundle: Path, model: Bundle) -> Plan:
        return make_plan(
            out,
            source=archive.root,
            bundle=str(bundle),
            model_id=model.model_id,
            operating_point="balanced",
            shard_size=self.SHARD,
        )

    def path(self, archive: Store, folder: str) -> str:
        return f"/{archive.root.removeprefix('s3://')}/{folder}"

    def rows(self, out: Store, plan: Plan, actor: ScoreShard) -> Counter[tuple[str, str | None]]:
        """Score the plan; the rows by status and reason."""
        parts = []
        for shard in range(plan.shards):
            actor({"shard": np.array([shard])})
            part = pa.BufferReader(out.get(part_key(plan, shard)))
            parts.append(pq.read_table(part, columns=["status", "reason"]))
        return Counter((row["status"], row["reason"]) for row in pa.concat_tables(parts).to_pylist())

    @pytest.mark.parametrize(
        ("answer", "told"),
        [((403, "AccessDenied"), "access denied"), ((403, "InvalidObjectState"), "restore it first")],
    )
    def test_goes_on_without_the_folder(
        self,
        archive: Store,
        faults: Faults,
        bundle: Path,
        model: Bundle,
        tmp_path: Path,
        layout: Layout,
        answer: tuple[int, str],
        told: str,
    ) -> None:
        out = open_store(str(tmp_path / "scores"))
        plan = self.planned(out, archive, bundle, model)
        faults.forbidden = (self.path(archive, "north/"), *answer)
        rows = self.rows(out, plan, ScoreShard(out.root, plan, layout))
        assert rows == {("scored", None): self.PER_FOLDER, ("failed", "access_denied"): 2 * self.PER_FOLDER}
        (corner,) = corners(out, plan.run_id)
        assert corner.prefix == archive.uri("north/")
        assert told in corner.told
        asked = faults.injected["forbidden"]
        assert asked <= self.PER_FOLDER + 60, "what was under way, and the search"

        another = Quarantine(out, plan)
        another.enter(0)
        assert another.corner_of(archive.uri("north/2026/3.png")) == corner, "another worker need not find it again"

    def test_of_which_every_film_is_refused_stops(
        self, archive: Store, faults: Faults, bundle: Path, model: Bundle, tmp_path: Path, layout: Layout
    ) -> None:
        out = open_store(str(tmp_path / "scores"))
        plan = self.planned(out, archive, bundle, model)
        faults.forbidden = (self.path(archive, ""), 403, "AccessDenied")
        with pytest.raises(IncompleteError, match=r"could not be fetched .access_denied.*check the credentials"):
            self.rows(out, plan, ScoreShard(out.root, plan, layout))
        assert corners(out, plan.run_id) == []

    def test_whose_plan_lies_in_the_folder_goes_on_too(
        self, archive: Store, faults: Faults, bundle: Path, model: Bundle, tmp_path: Path, layout: Layout
    ) -> None:
        out = open_store(str(tmp_path / "scores"))
        north = self.planned(out, archive.child("north"), bundle, model)
        plan = Plan(**{**vars(north), "source": archive.root})  # the others were scored the night before
        faults.forbidden = (self.path(archive, "north/"), 403, "AccessDenied")
        rows = self.rows(out, plan, ScoreShard(out.root, plan, layout))
        assert rows == {("failed", "access_denied"): 2 * self.PER_FOLDER}
        assert [corner.prefix for corner in corners(out, plan.run_id)] == [archive.uri("north/")]
