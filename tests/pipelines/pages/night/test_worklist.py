"""The worklist: the highest probabilities first, and pictures of patients only when asked for."""

from datetime import date
from pathlib import Path

import numpy as np

from pipelines.pages.night import worklist
from pipelines.phantom import dicom_bytes, encode
from pipelines.storage import Store, open_store
from tests.pipelines.pages.samples import Outcome, write_run, written_report


class TestWorklist:
    def test_the_highest_probabilities_first(self, store: Store, tmp_path: Path) -> None:
        day = {"study_date": date(2026, 11, 18)}
        write_run(store, 0, [Outcome(1, probability=0.99999)])  # not of tonight
        rows = [Outcome(1, probability=0.31), Outcome(1, probability=0.978, site="south", columns=day)]
        write_run(store, 1, [*rows, Outcome(60, probability=0.02), Outcome(1, reason="blank", status="rejected")])
        page = written_report(store, tmp_path / "night.html")
        assert "0.9780 called positive south · 2026-11-18 s3://hospital/scans/1-1-0.dcm" in page.text
        assert "0.3100 called negative north · study date not recorded s3://hospital/scans/1-0-0.dcm" in page.text
        assert page.text.index("1-1-0.dcm") < page.text.index("1-0-0.dcm")
        assert page.text.count(".dcm") == worklist.LENGTH
        assert page.images == []
        assert "images of patients" not in page.text

    def test_an_unfamiliar_film_is_not_on_it_whatever_probability_was_kept(self, store: Store, tmp_path: Path) -> None:
        kept = Outcome(1, probability=0.99, reason="unfamiliar", status="rejected", columns={"prediction": None})
        write_run(store, 0, [Outcome(3, probability=0.4), kept])
        page = written_report(store, tmp_path / "night.html")
        assert "0.4000 called negative" in page.text
        assert "0.9900" not in page.text

    def test_no_probability_is_rounded_to_certainty(self, store: Store, tmp_path: Path) -> None:
        write_run(store, 0, [Outcome(1, probability=0.99999), Outcome(1, probability=0.00001)])
        text = written_report(store, tmp_path / "night.html").text
        assert ">0.9999 called positive" in text
        assert "<0.0001 called negative" in text

    def test_thumbnails_come_from_the_archive_and_what_is_gone_is_said(self, store: Store, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path / "archive"))
        pixels = np.random.default_rng(3).integers(0, 255, (90, 70), dtype=np.uint8)
        archive.put("a.jpeg", encode(pixels, "jpeg"))
        archive.put("b.dcm", dicom_bytes(pixels))
        archive.put("c.png", encode(pixels, "png"))
        archive.put("d.jpeg", b"no longer a film")
        etags = {info.key: info.etag for chunk in archive.list() for info in chunk}
        archive.put("c.png", encode(pixels[::-1], "png") + b"changed")
        etags["gone.jpeg"] = "e"
        outcomes = [
            Outcome(1, probability=0.9 - n / 100, columns={"uri": archive.uri(key), "etag": etag})
            for n, (key, etag) in enumerate(sorted(etags.items()))
        ]
        write_run(store, 0, [*outcomes, Outcome(3, probability=0.1)])
        page = written_report(store, tmp_path / "night.html", thumbnails=5)
        assert "This page holds images of patients" in page.text
        assert page.text.index("images of patients") < page.text.index("What to do next")
        assert len(page.images) == 2
        assert {(image["width"], image["alt"]) for image in page.images} == {
            ("160", "Thumbnail of film 1"),
            ("160", "Thumbnail of film 2"),
        }
        assert "can no longer be read: changed" in page.text
        assert "can no longer be read: unknown_format" in page.text
        assert "can no longer be read: vanished" in page.text

    def test_as_many_films_as_thumbnails(self, store: Store, tmp_path: Path) -> None:
        missing = open_store(str(tmp_path / "archive")).uri("a.jpeg")
        write_run(store, 0, [Outcome(40, probability=0.9, columns={"uri": missing})])
        page = written_report(store, tmp_path / "night.html", thumbnails=30)
        assert page.text.count("can no longer be read") == 30
