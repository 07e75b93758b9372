"""The page of a model: its card, and the ledger of what came later."""

from pathlib import Path

import pytest

from cluster.report import write_report
from pipelines.bundles import record_evaluation
from pipelines.errors import InputError
from pipelines.pages.frame import interval
from pipelines.storage import Store
from tests.pipelines.pages.samples import (
    HOSTILE,
    entry,
    read_page,
    write_bundle,
    written_report,
)


def test_the_card_and_what_came_later(store: Store, tmp_path: Path) -> None:
    bundle = write_bundle(store.path, study="s3://studies/one", trial=7, training={"epochs": 8})
    page = written_report(store, tmp_path / "model.html")
    card = read_page((store.path / "card.html").read_text())
    assert bundle.model_id in page.text
    assert "study s3://studies/one" in page.text
    assert "Tested since 0 times" in page.text
    assert "None yet." in page.text
    assert "Ledger of later" not in card.text
    assert bundle.model_id not in card.text, "it is made from the card's hash"
    assert page.charts == card.charts
    before_ledger, _, _ = page.text.partition(" Ledger of later evaluations")
    assert before_ledger[before_ledger.index("Intended use") :] in card.text, "the same words in both"
    assert page.text[page.text.index(" Limits ") : page.text.index("Identity and origin")] in card.text


def test_ledger(store: Store, tmp_path: Path) -> None:
    write_bundle(store.path)
    tested = entry("test", seed=1)
    record_evaluation(store.root, {**tested, "dataset": "s3://films/kermany", "when": "2026-11-21T09:31:00+00:00"})
    record_evaluation(store.root, {"split": "test"})
    page = written_report(store, tmp_path / "model.html")
    assert "Tested since 2 times" in page.text
    assert f"2026-11-21 09:31 UTC test 200 {interval(tested['metrics']['auc'])}" in page.text
    assert "not recorded test no figures recorded not recorded" in page.text


def test_hostile_text_is_text(store: Store, tmp_path: Path) -> None:
    write_bundle(store.path, study=HOSTILE, training={HOSTILE: HOSTILE})
    record_evaluation(store.root, {"split": HOSTILE, "dataset": HOSTILE, "when": HOSTILE})
    page = written_report(store, tmp_path / "model.html")
    assert page.text.count(HOSTILE) == 3 + 3 + 2, "lineage, ledger, and the training settings among the CLAIM items"


def test_a_changed_bundle_is_refused(store: Store, tmp_path: Path) -> None:
    write_bundle(store.path)
    store.put("evaluation.json", b"{}")
    with pytest.raises(InputError, match=r"evaluation\.json was changed"):
        write_report(store.root, str(tmp_path / "model.html"))
