"""One small trial in a process of its own: FILMS.npz DEVICE SHARERS SIDE NUMBER; prints its figures as a line of JSON.

Memory is capped to a share of the device, as a search does for trials that share one.
"""

import json
import sys
import time

import torch

from models.films import Films
from tests.gpu.material import spec_of
from tests.gpu.readback import read_films
from tuning.training.loop import TrainSettings, fit


def main(file: str, device: str, sharers: str, side: str, number: str) -> None:
    """Train, and tell."""
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(1 / int(sharers))
    train, val = read_films(file)
    settings = TrainSettings(epochs=3, batch_size=32, augment=0.5, device=device, seed=int(number), threads=1)
    fit(spec_of("cnn", int(side)), _few(train), val, replace_epochs(settings, 1))
    started = time.perf_counter()
    fitted = fit(spec_of("cnn", int(side)), train, val, settings)
    told: dict[str, float] = {"seconds": round(time.perf_counter() - started, 2), "auc": round(fitted.best.val_auc, 3)}
    if on_gpu:
        free, total = torch.cuda.mem_get_info()
        told |= {
            "allocated MB": round(torch.cuda.max_memory_allocated() / 2**20),
            "reserved MB": round(torch.cuda.max_memory_reserved() / 2**20),
            "used on the GPU MB": round((total - free) / 2**20),
        }
    print(json.dumps(told), flush=True)


def replace_epochs(settings: TrainSettings, epochs: int) -> TrainSettings:
    return TrainSettings(**{**vars(settings), "epochs": epochs})


def _few(films: Films) -> Films:
    return films.take((films.labels >= 0) & (films.labels.cumsum() < 40))


if __name__ == "__main__":
    main(*sys.argv[1:])
