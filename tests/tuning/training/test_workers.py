"""Two workers train what one would: real processes, joined by gloo."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.modules.batchnorm import _NormBase

from models.errors import InputError, RayscanError
from models.networks.classifier import ScanClassifier
from models.networks.preprocess import Preprocess
from models.networks.zoo import build
from models.spec import ModelSpec
from tests.models.synthetic import blob_films, small_spec
from tuning.training.checkpoint import Checkpoint
from tuning.training.loop import EpochReport, EpochState, TrainSettings, fit
from tuning.training.workers import Workers

TRAIN, VAL = blob_films(64), blob_films(32, seed=1)
MLP = small_spec("mlp", width=16, dropout=0.0)  # no batch normalisation either
CNN = small_spec("cnn", depth=2, width=8, dropout=0.2)
PLAIN = TrainSettings(
    epochs=3,
    learning_rate=0.05,
    batch_size=15,
    accumulate=2,
    augment=0.0,
    class_weighting="balanced",
    patience=2,
    device="cpu",
    threads=1,
    optimiser="sgd",  # AdamW makes a whole step of a gradient that is zero but for rounding
)
AUGMENTED = replace(PLAIN, augment=1.0, mixup=0.4, ema=0.9, patience=0)
COUNT = 2


def _start() -> dict[str, torch.Tensor]:
    """Weights to start from, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return build(MLP).state_dict()


START = _start()


def train(rank: int, folder: Path) -> None:
    """What each process does, for all tests in one, as starting it takes longest."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/join", rank=rank, world_size=COUNT)
    workers = Workers(rank=rank, count=COUNT)
    plain = fit(MLP, TRAIN, VAL, PLAIN, workers=workers)
    torch.save((plain.state_dict, [vars(report) for report in plain.history]), folder / f"plain-{rank}.pt")

    files: list[bytes] = []

    def keep(report: EpochReport, state: EpochState) -> bool:
        files.append(state.checkpoint().to_bytes())
        return True

    whole = fit(CNN, TRAIN, VAL, AUGMENTED, keep, workers=workers)
    torch.distributed.barrier()
    (folder / f"first-{rank}").write_bytes(files[0])
    torch.distributed.barrier()
    first = Checkpoint.from_bytes((folder / "first-0").read_bytes())  # on storage there is only the first worker's
    resumed = fit(CNN, TRAIN, VAL, AUGMENTED, workers=workers, resume=first)
    torch.save((whole.state_dict, resumed.state_dict), folder / f"resumed-{rank}.pt")
    other = {name: value + rank for name, value in START.items()}  # as of another file, or another library
    begun = fit(MLP, TRAIN, VAL, PLAIN, weights=other, workers=workers)
    torch.save((begun.state_dict, whole.val_logits), folder / f"begun-{rank}.pt")
    wild = replace(PLAIN, epochs=200, learning_rate=10, weight_decay=10, optimiser="sgd", patience=0)
    with pytest.raises(RayscanError, match="diverged"):  # on both, so that none waits for the other
        fit(MLP, TRAIN, VAL, wild, workers=workers)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(train, (folder,), nprocs=COUNT)  # type: ignore[no-untyped-call]
    return folder


def test_two_workers_train_what_one_would(trained: Path) -> None:
    one = fit(MLP, TRAIN, VAL, PLAIN)
    for rank in range(COUNT):
        weights, history = torch.load(trained / f"plain-{rank}.pt")
        for name, value in one.state_dict.items():
            torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=1e-4)
        assert len(history) == len(one.history)
        for report, expected in zip(history, one.history, strict=True):
            assert report["train_loss"] == pytest.approx(expected.train_loss, abs=1e-5)
            assert report["val_loss"] == pytest.approx(expected.val_loss, abs=1e-5)
            assert report["val_auc"] == pytest.approx(expected.val_auc, abs=0.005)


def test_a_group_resumes_from_its_first_workers_checkpoint(trained: Path) -> None:
    whole, resumed = torch.load(trained / "resumed-0.pt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_all_start_from_the_first_ones_weights(trained: Path) -> None:
    one = fit(MLP, TRAIN, VAL, PLAIN, weights=START)
    for rank in range(COUNT):
        weights, _ = torch.load(trained / f"begun-{rank}.pt", weights_only=False)
        for name, value in one.state_dict.items():
            torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=1e-4)


def test_each_evaluates_a_part_with_the_first_ones_statistics(trained: Path) -> None:
    """On CPUs each has its own; the logits are those of the network that is kept."""
    (_, logits), (_, others) = (torch.load(trained / f"begun-{rank}.pt", weights_only=False) for rank in range(COUNT))
    assert np.array_equal(logits, others)
    kept, _ = torch.load(trained / "resumed-0.pt")
    network = build(CNN).eval()
    network.load_state_dict(kept)
    with torch.inference_mode():
        expected = ScanClassifier(Preprocess(CNN.preprocessing), network).logits(torch.from_numpy(VAL.pixels))
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("films", [0, 1, 3, 31])
def test_films_in_a_row_are_parted_once_each(films: int) -> None:
    parts = [Workers(rank=rank, count=4).part(films) for rank in range(4)]
    assert [film for first, last in parts for film in range(first, last)] == list(range(films))


def test_films_are_shared_out_once_each() -> None:
    films = np.arange(31)
    parts = [Workers(rank=rank, count=4).share(films) for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), films)
    assert Workers().share(films) is films


@pytest.mark.parametrize("spec", [MLP, CNN])
def test_too_few_films_for_all_workers(spec: ModelSpec) -> None:
    with pytest.raises(InputError, match="each of 4 workers needs 2 films"):
        fit(spec, TRAIN, VAL, replace(PLAIN, batch_size=6, accumulate=1), workers=Workers(rank=0, count=4))


@pytest.mark.parametrize("name", ["cnn", "mobilenetv2_035", "efficientnet_b0", "resnet18"])
def test_synchronised_normalisation_computes_what_it_did_before(name: str) -> None:
    """That of timm has an activation of its own, which torch's converter drops. What is tested needs no GPU."""
    torch.manual_seed(0)
    network = build(small_spec(name)).eval()
    for module in network.modules():
        if isinstance(module, _NormBase):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    films = torch.randn(4, 1, 32, 32)
    with torch.inference_mode():
        expected = network(films)
        names = list(network.state_dict())
        prepared = Workers(rank=1, count=2).prepare(network, torch.device("cuda")).eval()
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in prepared.modules())
        torch.testing.assert_close(prepared(films), expected)
    assert list(prepared.state_dict()) == names


def test_a_single_process_and_processes_on_cpus_keep_their_normalisation() -> None:
    network = build(CNN)
    assert Workers().prepare(network, torch.device("cuda")) is network
    assert Workers(rank=0, count=2).prepare(network, torch.device("cpu")) is network
