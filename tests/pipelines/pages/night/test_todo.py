"""The tasks of a night follow from its run, the most urgent first."""

from pathlib import Path

from pipelines.contracts import Reason
from pipelines.pages.night import todo
from pipelines.storage import Store
from pipelines.table.drift import NOT_THESE
from tests.pipelines.pages.night.runs import NIGHT, finding
from tests.pipelines.pages.samples import Outcome, write_run, written_report


class TestTasks:
    def test_the_worst_comes_first(self, store: Store, tmp_path: Path) -> None:
        drift = [finding("ok"), finding("warn", "north"), finding("alarm", "south", quantity="ood_score")]
        outcomes = [*NIGHT, Outcome(5, reason="access_denied", status="failed")]
        write_run(store, 0, outcomes, drift=drift, given_up=7, lost_workers=1)
        text = written_report(store, tmp_path / "night.html").text
        told = [
            "ALARM Drift at south: distance. Do not trust the probabilities",
            "Distance: PSI 0.61, KS 0.40; 90 % of them above the reference's median.",
            "warning 5 scans failed (access_denied). The store denied access.",
            "warning Given up: 7 scans that failed in too many runs.",
            "warning Drift at north: brightness. Look at some",
            "note Shards were restarted once",
            "note 8 scans cannot be read (truncated). The file ends too early",
            "note 301 films are called positive.",
        ]
        places = [text.index(words) for words in told]
        assert places == sorted(places)
        assert places[-1] < text.index("Planned")

    def test_that_the_patients_are_others_is_said_first_and_once(self, store: Store, tmp_path: Path) -> None:
        note = f"{NOT_THESE}: 94 % of 500 films are unfamiliar to the model"
        others = finding("alarm", "adults", "unfamiliar_share", psi=None, ks=None, note=note, share=0.94)
        some = finding("alarm", "north", "unfamiliar_share", psi=None, ks=None, note="20 % of 500 films", share=0.2)
        write_run(store, 0, NIGHT, drift=[finding("alarm", "south"), some, others])
        text = written_report(store, tmp_path / "night.html").text
        assert text.index(f"ALARM At adults: {note}. Take no probability") < text.index("ALARM Drift at south")
        assert text.count(NOT_THESE) == 1
        assert "ALARM Drift at north: unfamiliar." in text

    def test_many_unreadable_files_are_a_warning(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(90, probability=0.1), Outcome(10, reason="corrupt", status="unreadable")])
        assert "warning 10 scans cannot be read" in written_report(store, tmp_path / "night.html").text

    def test_drift_everywhere_does_not_bury_the_rest(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, NIGHT, drift=[finding("alarm", f"site-{n:03d}") for n in range(180)])
        page = written_report(store, tmp_path / "night.html")
        assert page.text.count("ALARM Drift at") == todo.SITES_NAMED + 1
        assert "Drift at 175 more sites." in page.text

    def test_a_quiet_night_asks_for_nothing(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(90, probability=0.1)])
        assert "What to do next note Nothing." in written_report(store, tmp_path / "night.html").text

    def test_every_reason_has_advice(self) -> None:
        assert set(todo.ADVICE) == set(Reason)
