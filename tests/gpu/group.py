"""One of two workers: FILMS.npz DEVICE SIDE JOIN RANK; prints the losses of its epochs as one line of JSON."""

import json
import sys

import torch.distributed

from models.spec import ModelSpec, Preprocessing
from tests.gpu.readback import read_films
from tuning.training.loop import TrainSettings, fit
from tuning.training.workers import Workers


def main(file: str, device: str, side: str, join: str, rank: str) -> None:
    """Train together, and tell."""
    torch.distributed.init_process_group("gloo", f"file://{join}", rank=int(rank), world_size=2)
    train, val = read_films(file)
    spec = ModelSpec(name="mlp", parameters={"dropout": 0.0}, preprocessing=Preprocessing(size=int(side)))
    settings = TrainSettings(
        epochs=2, batch_size=32, learning_rate=0.02, augment=0.0, optimiser="sgd", device=device, seed=5
    )
    fitted = fit(spec, train, val, settings, workers=Workers(rank=int(rank), count=2))
    print(json.dumps([report.train_loss for report in fitted.history]), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
