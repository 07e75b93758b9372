"""`rayscan score` against what else could score the films, in one run: the requirement's speeds, asserted.

    floor       two bare processes, no framework: what this machine gives (rivals/floor.py)
    loader      a tuned torch DataLoader loop (rivals/loader.py)
    Ray guide   the recipe of Ray Data's guide to batch inference (rivals/ray_guide.py)

All read the same films from the same S3 server, which works on the same cores. Rates on a shared machine are noisy:
read the ratios. RAYSCAN_BENCH_FILMS=1500 is a quick look, which asserts nothing: start-up then counts too much.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from models.bundle import Bundle
from models.engines.openvino_engine import import_openvino
from models.spec import ModelSpec, Preprocessing
from pipelines.ingest.dataset import DatasetInfo
from tests.benchmarks.films import Originals, link, originals
from tests.benchmarks.measured import Measured, extended, measured, median, record, table
from tests.benchmarks.processes import watch
from tests.servers import ACCESS_KEY, SECRET_KEY, S3Server, clean_environment, free_port, running_server
from tuning.recipes.promote import promote
from tuning.training.films import TrainingFilms
from tuning.training.loop import TrainSettings, fit

FILMS = int(os.environ.get("RAYSCAN_BENCH_FILMS", "9000"))
GUIDE_FILMS = min(FILMS, 1500)
"""The guide's recipe is slow: the rest of the films is added to its time at its steady rate."""
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "268435456"}
"""For the loader, as models.engines.allocator does for rayscan; worth a quarter of its inference."""
ROUNDS = int(os.environ.get("RAYSCAN_BENCH_ROUNDS", "3" if FILMS >= 9000 else "1"))
"""The floor and rayscan take turns; figures are medians."""
SIZE = 224
EPOCHS = {"resnet18": 8, "mobilenetv2_035": 30}
"""Until it knows the films by heart."""
RIVALS = Path(__file__).with_name("rivals")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rivals of one model get."""

    server: S3Server
    disk: Path
    """Folder the server serves."""
    films: Originals
    work: Path
    command: str

    @property
    def source(self) -> str:
        return "s3://films/night"

    def environment(self) -> dict[str, str]:
        return clean_environment() | self.server.environment() | {"RAYSCAN_CACHE": str(self.work / "cache")}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def bench(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """9,000 films in a bucket of an rclone server that has listed, and so hashed, them once before the races."""
    work = tmp_path_factory.mktemp("bench")
    films = originals(work / "originals")
    link(films.paths, disk / "films" / "night", FILMS)
    (disk / "scores").mkdir()
    port = free_port()
    binaries = Path(sys.executable).parent
    rclone = [str(binaries / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--dir-cache-time", "24h"]
    with running_server([*rclone, "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(disk)], port) as server:
        bench = Bench(server=server, disk=disk, films=films, work=work, command=str(binaries / "rayscan"))
        count = "import obstore; from obstore.store import S3Store; import os;"
        count += (
            "store = S3Store('films', endpoint=os.environ['AWS_ENDPOINT_URL'], client_options={'allow_http': True});"
        )
        count += "print(sum(map(len, obstore.list(store))))"
        assert int(watch([sys.executable, "-c", count], bench.environment()).output) == FILMS
        yield bench


def publish(name: str, films: Originals, uri: str) -> Bundle:
    """A bundle of a backbone that has learnt these films by heart: sure of them, as a finished model is.

    bf16 is allowed where it leaves films on their side of the thresholds; a model unsure of them all fails that.
    """
    spec = ModelSpec(name=name, preprocessing=Preprocessing(size=SIZE))
    learnt = films.prepared(SIZE)
    info = DatasetInfo(size=SIZE, preprocessing=spec.preprocessing, fingerprint="bench", counts={}, parts={})
    fitted = fit(spec, learnt, learnt, TrainSettings(epochs=EPOCHS[name], augment=0.0, batch_size=16))
    return promote(fitted, TrainingFilms(uri="", info=info, train=learnt, val=learnt), uri, lineage={})


def export(bundle: Bundle, path: Path) -> None:
    """The network alone for the rivals: timm's weights beside OpenVINO's IR, float32 [N, 1, 224, 224] -> logits."""
    import safetensors.torch
    import torch

    openvino = import_openvino()
    network = bundle.network()
    safetensors.torch.save_file(network.state_dict(), path.with_suffix(".safetensors"))
    example = torch.zeros(2, 1, SIZE, SIZE)
    exported = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
    openvino.save_model(openvino.convert_model(exported), path, compress_to_fp16=False)


def run_floor(bench: Bench, model: Path) -> Measured:
    out = bench.work / "floor.json"
    command = [sys.executable, str(RIVALS / "floor.py"), bench.source, str(model), str(out)]
    run = watch(command, bench.environment())
    return measured("floor", run, json.loads(out.read_text())["stamps"])


def run_rayscan(bench: Bench, bundle: str, scores: str) -> tuple[Measured, Mapping[str, object]]:
    command = [bench.command, "score", bench.source, "--model", bundle, "--out", f"s3://scores/{scores}", "--json"]
    run = watch(command, bench.environment())
    (answer,) = json.loads(run.output)
    assert answer["counts"]["scored"] == FILMS
    parts = (bench.disk / "scores" / scores).rglob("scores/**/*.parquet")
    return measured("rayscan score", run, [(p.stat().st_mtime, pq.read_metadata(p).num_rows) for p in parts]), answer


def run_loader(bench: Bench, name: str) -> Measured:
    """With one torch thread beside its two workers, and with two: the faster."""
    weights, out, tried = str(bench.work / f"{name}.safetensors"), bench.work / "loader.json", []
    for threads in ("1", "2"):
        command = [sys.executable, str(RIVALS / "loader.py"), bench.source, name, weights, threads, str(out)]
        run = watch(command, bench.environment() | TUNED_MALLOC)
        tried.append(measured(f"torch DataLoader, {threads} threads", run, json.loads(out.read_text())["stamps"]))
    return max(tried, key=lambda one: one.whole)


def run_guide(bench: Bench, name: str) -> Measured:
    weights = str(bench.work / f"{name}.safetensors")
    command = [
        sys.executable,
        str(RIVALS / "ray_guide.py"),
        bench.source,
        name,
        weights,
        str(bench.work / "guide" / name),
    ]
    run = watch([*command, str(GUIDE_FILMS)], bench.environment())
    parts = list((bench.work / "guide" / name).rglob("*.parquet"))
    at = [stamp for part in parts for stamp in pq.read_table(part, columns=["at"])["at"].to_pylist()]
    assert len(at) == GUIDE_FILMS
    return extended(measured("Ray Data guide", run, [(stamp, 1) for stamp in at]), FILMS)


@pytest.mark.bench
@pytest.mark.parametrize("name", EPOCHS)
def test_score_against_its_rivals(name: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    # not on the server, which keeps a folder as it first listed it
    bundle_folder = bench.work / "models" / name
    bundle = publish(name, bench.films, str(bundle_folder))
    model = bench.work / f"{name}.xml"
    export(bundle, model)
    runs: dict[str, list[Measured]] = {"rayscan": [], "floor": [], "loader": [], "guide": []}
    engine: object = None

    def ran(rival: str, one: Measured) -> None:
        runs[rival].append(one)
        with capsys.disabled():
            print(f"{name}: {one}")

    for number in range(ROUNDS):
        ran("floor", run_floor(bench, model))
        one, answer = run_rayscan(bench, str(bundle_folder), f"{name}-{number}")
        ran("rayscan", one)
        engine = answer["engine"]
        if number == 0:
            ran("loader", run_loader(bench, name))
            ran("guide", run_guide(bench, name))
    text = f"## {name} at {SIZE}\n\n{bench.films.what}, as {FILMS} keys of an S3 server on the same cores (rclone);"
    text += f" rayscan's engine: {engine}, decode {bundle.spec.preprocessing.decode}\n\n{table(runs)}"
    with capsys.disabled():
        print(f"\n{text}")
    record(f"scoring-{name}", text)
    if FILMS < 9000:
        pytest.skip(f"{FILMS} films are too few to judge by; the table above is an indication")
    mine, bare, loader, guide = (median(several) for several in runs.values())
    assert mine.steady >= 0.95 * bare.steady
    assert mine.whole >= 0.90 * bare.whole
    # where bfloat16 has no matrix unit the floor itself is not so far above these two
    assert mine.whole >= min(6 * guide.whole, 0.90 * bare.whole)
    assert mine.whole >= min(2 * loader.whole, 0.90 * bare.whole)
