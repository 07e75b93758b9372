"""Maps beside the first thumbnails, by the model that scored the films."""

import re
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle
from models.explain import picture, saliency
from models.networks.zoo import build
from models.spec import ModelSpec
from pipelines.decoding.decode import decode
from pipelines.pages.frame import data_uri
from pipelines.pages.night import maps, worklist
from pipelines.phantom import encode
from pipelines.storage import Store, open_store
from pipelines.table.query import read_scores
from tests.models.synthetic import blob_films, small_spec
from tests.pipelines.bundles import save_untrained
from tests.pipelines.pages.samples import Outcome, write_run, written_report


class TestMaps:
    """Beside the first thumbnails, by the model that scored the films."""

    @pytest.fixture
    def films(self, tmp_path: Path) -> list[Outcome]:
        """Fifteen films in an archive, and one that is gone."""
        archive = open_store(str(tmp_path / "archive"))
        for number, pixels in enumerate(blob_films(15, size=64).pixels):
            archive.put(f"{number:02d}.png", encode(pixels, "png"))
        etags = {archive.uri(info.key): info.etag for chunk in archive.list() for info in chunk}
        etags[archive.uri("99.png")] = "e"
        return [
            Outcome(1, probability=0.9 - n / 100, columns={"uri": uri, "etag": etag})
            for n, (uri, etag) in enumerate(sorted(etags.items(), reverse=True))
        ]

    def bundle(self, folder: Path, spec: ModelSpec) -> Bundle:
        torch.manual_seed(3)
        network = build(spec)
        with torch.no_grad():
            for weights in network.parameters():
                torch.nn.init.normal_(weights, std=0.3)
        return save_untrained(folder, spec, network=network)

    def night(self, store: Store, films: list[Outcome], bundle: Bundle, uri: str | None = None) -> str:
        return write_run(store, 0, films, model_id=bundle.model_id, bundle=uri or str(bundle.folder))

    def test_the_first_films_that_can_be_read_have_maps(
        self, store: Store, tmp_path: Path, films: list[Outcome]
    ) -> None:
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        self.night(store, films, bundle)
        page = written_report(store, tmp_path / "night.html", thumbnails=16)
        alts = [str(image["alt"]) for image in page.images]
        assert alts[:4] == ["Thumbnail of film 2", "Map over film 2", "Thumbnail of film 3", "Map over film 3"]
        assert sum(alt.startswith("Thumbnail") for alt in alts) == 15
        assert sum(alt.startswith("Map") for alt in alts) == maps.MOST - 1
        assert alts[-1] == "Thumbnail of film 16"
        assert f"The coloured copies of {maps.MOST - 1} films" in page.text
        assert "not a finding" in page.text

        archive, _, name = str(films[1].columns["uri"]).rpartition("/")
        pixels = decode(open_store(archive).get(name), bundle.spec.preprocessing).pixels
        heat = saliency(bundle.classifier(), pixels)
        assert page.images[1]["src"] == data_uri(picture(pixels, heat, side=worklist.SIDE))

    def test_no_thumbnails_no_maps(self, store: Store, tmp_path: Path, films: list[Outcome]) -> None:
        self.night(store, films, self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8)))
        page = written_report(store, tmp_path / "night.html")
        assert page.images == []
        assert "coloured" not in page.text
        assert "No maps" not in page.text

    def test_a_model_that_looks_nowhere_leaves_the_thumbnails_plain(
        self, store: Store, tmp_path: Path, films: list[Outcome]
    ) -> None:
        self.night(store, films, self.bundle(tmp_path / "model", small_spec("majority", 64)))
        page = written_report(store, tmp_path / "night.html", thumbnails=3)
        assert [image["alt"] for image in page.images] == ["Thumbnail of film 2", "Thumbnail of film 3"]
        assert "No maps: no part of these films raises its score." in page.text

    @pytest.mark.parametrize(
        ("lies", "says"),
        [
            ("nowhere", r"No maps: .*nowhere/bundle.json is missing; .* is not a whole bundle\."),
            ("other", r"No maps: another model \(\w{16}\) is at .*other now\."),
            ("broken", r"No maps: .*weights.safetensors was changed after the bundle was made; .*\."),
        ],
    )
    def test_without_the_runs_model_the_page_says_why(
        self, store: Store, tmp_path: Path, films: list[Outcome], lies: str, says: str
    ) -> None:
        bundle = self.bundle(tmp_path / "broken", small_spec("mlp", 64, width=8))
        self.bundle(tmp_path / "other", small_spec("mlp", 64, width=16))
        if lies == "broken":
            (tmp_path / "broken" / "weights.safetensors").write_bytes(b"x")
        self.night(store, films, bundle, str(tmp_path / lies))
        page = written_report(store, tmp_path / "night.html", thumbnails=3)
        assert re.search(says, page.text)
        assert [image["alt"] for image in page.images] == ["Thumbnail of film 2", "Thumbnail of film 3"]

    def test_a_network_that_fails_costs_the_maps_and_is_told(
        self, store: Store, tmp_path: Path, films: list[Outcome], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As torch does where a network cannot do what is asked of it, or has no memory for it."""
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        self.night(store, films, bundle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("models.networks.zoo.MLP.forward", lambda *_: torch.ones(2) @ torch.ones(3))
            page = written_report(store, tmp_path / "night.html", thumbnails=3)
        assert "No maps: the model failed (inconsistent tensor size" in page.text
        assert len(page.images) == 2
        assert "no maps on the worklist" in caplog.text
        assert "Traceback" in caplog.text

    def test_a_slow_network_is_not_waited_for(self, store: Store, tmp_path: Path, films: list[Outcome]) -> None:
        bundle = self.bundle(tmp_path / "model", small_spec("mlp", 64, width=8))
        run_id = self.night(store, films, bundle)
        shown = worklist.with_thumbnails(read_scores(store.root, lambda scores: worklist.worklist(scores, run_id, 3)))
        mapped, _ = maps.with_maps(shown, str(bundle.folder), bundle.model_id)
        assert [film.map is not None for film in mapped] == [False, True, True]
        late, told = maps.with_maps(shown, str(bundle.folder), bundle.model_id, seconds=-1)
        assert late == shown
        assert told == "No maps: this model is too slow."
