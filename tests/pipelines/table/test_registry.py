"""Which model is in force: what is recorded, and what follows from it."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import BundleError, InputError
from pipelines.storage import Store, open_store
from pipelines.table.query import ask
from pipelines.table.registry import (
    ROLES,
    USER_VARIABLE,
    Entry,
    Role,
    bundle_in_role,
    periods,
    promote,
    read_entries,
    roles,
    rollback,
)
from tests.models.synthetic import small_spec
from tests.pipelines.bundles import save_untrained
from tests.pipelines.table.test_query import fill
from tests.servers import S3Server

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models."""
    folder = tmp_path_factory.mktemp("bundles")
    return [
        f"file://{save_untrained(folder / name, small_spec(), lineage={'recipe': {'name': name}}).folder}"
        for name in ("first", "second", "third")
    ]


@pytest.fixture(params=["local", "rclone", "moto"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "scores"))
    server: S3Server = request.getfixturevalue("s3" if request.param == "rclone" else "s3_conditional")
    return open_store(f"{server.bucket()}/scores")


def in_force(store: Store) -> dict[Role, str]:
    return {role: entry.name for role, entry in roles(read_entries(store)).items()}


def test_the_life_of_models(scores: Store, bundles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USER_VARIABLE, "anna")
    first, second, third = bundles
    assert in_force(scores) == {}
    promote(scores.root, first, "production", why="the first")
    promote(scores.root, second, "candidate")
    promote(scores.root, second, "shadow", who="ben")
    assert in_force(scores) == {"production": "first", "shadow": "second"}, "a model that rises leaves the role it had"
    promote(scores.root, second, "production")
    promote(scores.root, third, "production", name="third of March")
    assert in_force(scores) == {"production": "third of March"}
    assert bundle_in_role(scores.root, "production") == third
    back = rollback(scores.root, why="too many alarms")
    assert (back.name, back.action, back.why, back.who) == ("second", "rollback", "too many alarms", "anna")
    assert bundle_in_role(scores.root, "production") == second
    assert rollback(scores.root).name == "first"
    with pytest.raises(InputError, match=r"nothing to roll back to: model .* is the first one here"):
        rollback(scores.root)
    entries = read_entries(scores)
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert [entry.who for entry in entries[:3]] == ["anna", "anna", "ben"]
    promote(scores.root, third, "production")
    assert rollback(scores.root).name == "first", "not to what was rolled back before"


def test_what_is_refused(tmp_path: Path, bundles: list[str]) -> None:
    scores = open_store(str(tmp_path / "scores"))
    with pytest.raises(InputError, match="nothing to roll back to: no model is in production here"):
        rollback(scores.root)
    with pytest.raises(InputError, match=r"no model is shadow here; name one with: rayscan promote SCORES BUNDLE --as"):
        bundle_in_role(scores.root, "shadow")
    with pytest.raises(BundleError, match="not a whole bundle"):
        promote(scores.root, str(tmp_path), "shadow")
    promote(scores.root, bundles[0], "production")
    with pytest.raises(InputError, match=r"is production here already, since 20\d\d-"):
        promote(scores.root, bundles[0], "production")
    with pytest.raises(InputError, match="is in production here; promote another to production first, or roll back"):
        promote(scores.root, bundles[0], "shadow")
    assert len(read_entries(scores)) == 1
    scores.put("models/00000002.json", b"{}")
    with pytest.raises(InputError, match=r"00000002\.json: not an entry of the models' record"):
        bundle_in_role(scores.root, "production")


def test_a_bundle_that_became_another_is_not_scored_with(tmp_path: Path, bundles: list[str]) -> None:
    scores, place = open_store(str(tmp_path / "scores")), tmp_path / "best"
    model = save_untrained(place)
    promote(scores.root, str(place), "production")
    for file in place.iterdir():
        file.unlink()
    save_untrained(place, lineage={"another": True})
    with pytest.raises(BundleError, match=f"and {model.model_id} was promoted from there; restore it, or promote"):
        bundle_in_role(scores.root, "production")
    promote(scores.root, bundles[0], "production")
    with pytest.raises(BundleError, match="was promoted from there"):
        rollback(scores.root)


def test_promotions_at_once_are_all_recorded(scores: Store, bundles: list[str]) -> None:
    def run(number: int) -> Entry:
        return promote(scores.root, bundles[number % 3], ROLES[number // 3], who=f"user {number}")

    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(run, range(6)))
    entries = read_entries(scores)
    assert sorted(entry.who for entry in entries) == [f"user {number}" for number in range(6)]
    assert sorted(made, key=entries.index) == entries
    numbers = [entry.number for entry in entries]
    assert numbers == sorted(numbers)
    if scores.has_conditional_put():
        assert numbers == list(range(1, 7))
    # The next one is behind all of them.
    assert promote(scores.root, bundles[0], "production").number == numbers[-1] + 1


def test_two_rollbacks_decided_at_once_go_back_once(tmp_path: Path, bundles: list[str]) -> None:
    scores = open_store(str(tmp_path / "scores"))
    for bundle in bundles:
        promote(scores.root, bundle, "production")
    rollback(scores.root)
    (entry,) = read_entries(scores)[-1:]
    again = {**json.loads(scores.get("models/00000004.json")), "number": 5, "who": "another"}
    scores.put("models/00000005.json", json.dumps(again).encode())
    assert in_force(scores)["production"] == entry.name == "second"
    assert rollback(scores.root).name == "first"


def test_entries_follow_each_other_when_the_stores_clock_is_set_back(tmp_path: Path, bundles: list[str]) -> None:
    scores = open_store(str(tmp_path / "scores"))
    promote(scores.root, bundles[0], "production")
    later = {**json.loads(scores.get("models/00000001.json")), "at": "2100-01-01T00:00:00+00:00"}
    scores.put("models/00000001.json", json.dumps(later).encode())
    assert promote(scores.root, bundles[1], "production").at == datetime(2100, 1, 1, tzinfo=UTC)


DECISIONS = st.tuples(st.sampled_from(ROLES), st.sampled_from("abc"), st.integers(0, 3))


def entries_of(decisions: list[tuple[Role, str, int]]) -> list[Entry]:
    at, entries = START, []
    for number, (role, model, hours) in enumerate(decisions, 1):
        at += timedelta(hours=hours)
        entries.append(
            Entry(
                number=number, action="promote", role=role, model_id=model, bundle=f"s3://m/{model}", name=model,
                who="anna", why="", at=at,
            )
        )  # fmt: skip
    return entries


@given(st.lists(DECISIONS, max_size=12), st.integers(-1, 40))
def test_in_force_is_what_those_said_who_decided_before(decisions: list[tuple[Role, str, int]], hours: int) -> None:
    entries, at = entries_of(decisions), START + timedelta(hours=hours)
    held: dict[Role, str] = {}
    for entry in entries:
        if entry.at <= at:
            risen = [
                r for r, model in held.items() if model == entry.model_id and ROLES.index(r) < ROLES.index(entry.role)
            ]
            held = {role: model for role, model in held.items() if role not in risen} | {entry.role: entry.model_id}
    assert {role: entry.model_id for role, entry in roles(entries, at).items()} == held
    assert roles(entries) == roles(entries, datetime.max.replace(tzinfo=UTC))


@given(st.lists(DECISIONS, max_size=12))
def test_a_role_has_one_model_at_a_time(decisions: list[tuple[Role, str, int]]) -> None:
    entries = entries_of(decisions)
    spans = periods(entries)
    assert [span.entry for span in spans] == entries
    for role in ROLES:
        mine = [span for span in spans if span.entry.role == role]
        assert all(span.until is None or span.until >= span.entry.at for span in mine)
        assert all(a.until is not None and a.until <= b.entry.at for a, b in pairwise(mine))


@pytest.mark.parametrize("place", ["local", "moto"])
def test_the_record_is_a_view(request: pytest.FixtureRequest, tmp_path: Path, bundles: list[str], place: str) -> None:
    server = request.getfixturevalue("s3_conditional") if place == "moto" else None
    scores = fill(open_store(f"{server.bucket()}/scores" if server else str(tmp_path / "scores")))
    assert ask(scores.root, "SELECT * FROM models").num_rows == 0
    assert ask(scores.root, "SELECT * FROM production").num_rows == 0
    assert ask(scores.root)["scans"].to_pylist() == [2, 1], "of all models, where none is in production"
    for bundle in bundles[:2]:
        promote(scores.root, bundle, "production", who="anna", why="better")
    for number, day in ((1, 1), (2, 5)):
        key = f"models/{number:08d}.json"
        scores.put(key, json.dumps({**json.loads(scores.get(key)), "at": f"2026-03-0{day}T00:00:00+00:00"}).encode())
    in_force = """
        SELECT name, who, why FROM models
        WHERE role = 'production' AND valid_from <= '2026-03-03' AND coalesce(valid_to > '2026-03-03', true)
    """
    assert ask(scores.root, in_force).to_pylist() == [{"name": "first", "who": "anna", "why": "better"}]
    assert ask(scores.root, in_force.replace("-03'", "-05'"))["name"].to_pylist() == ["second"]
    assert ask(scores.root, "SELECT * FROM production").num_rows == 0, "it has not scored anything"
    assert ask(scores.root).num_rows == 0


def test_production_is_what_latest_holds_of_the_model_in_force(tmp_path: Path, bundles: list[str]) -> None:
    scores = fill(open_store(str(tmp_path / "scores")))
    promote(scores.root, bundles[0], "production")
    key = "models/00000001.json"
    (model,) = ask(scores.root, "SELECT DISTINCT model_id FROM latest")["model_id"].to_pylist()
    scores.put(key, json.dumps({**json.loads(scores.get(key)), "model_id": model}).encode())
    assert ask(scores.root, "SELECT uri, status FROM production ORDER BY uri").to_pylist() == [
        {"uri": "a", "status": "scored"},
        {"uri": "b", "status": "scored"},
        {"uri": "c", "status": "unreadable"},
    ]
    assert ask(scores.root)["scans"].to_pylist() == [2, 1]
