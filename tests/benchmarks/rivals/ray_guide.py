"""The recipe of Ray Data's guide to batch inference: read_images RGB 224 -> eager torch actors -> write_parquet.

    python ray_guide.py s3://bucket/prefix NAME WEIGHTS.safetensors OUT FILMS

https://docs.ray.io/en/latest/data/batch_inference.html, with the film's grey (the three channels are the same) and its
normalisation inside the actor, since the model is the one that rayscan scores with. OUT is a local folder:
pyarrow's S3 writer hangs on `rclone serve s3`.
"""

import os
import sys
import time
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data

SIDE, BATCH, ACTORS = 224, 32, 1
"""One actor: with two of one CPU each on two cores the readers would never get a core, and Ray Data would hang."""


class Model:
    """The guide's actor."""

    def __init__(self, name: str, weights: str) -> None:
        import safetensors.torch
        import timm

        self.network = timm.create_model(name, in_chans=1, num_classes=2)
        self.network.load_state_dict(safetensors.torch.load_file(weights))
        self.network.eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch

        with torch.inference_mode():
            grey = torch.from_numpy(batch["image"][..., 0].astype(np.float32)).unsqueeze(1)
            deviation, mean = torch.std_mean(grey, dim=(2, 3), keepdim=True, correction=0)
            logits = self.network((grey - mean) / deviation.clamp_min(1.0))
            probability = torch.softmax(logits, dim=1)[:, 1].numpy()
        return {"path": batch["path"], "probability": probability, "at": np.full(len(probability), time.time())}


def main(source: str, name: str, weights: str, target: str, films: str) -> None:
    """Score the first films; each row records when it was scored."""
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    server = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http")
    listed = server.get_file_info(pyarrow.fs.FileSelector(source.removeprefix("s3://"), recursive=True))
    paths = sorted(info.path for info in listed if info.is_file)[: int(films)]
    ray.init("local", log_to_driver=False)
    (
        ray.data.read_images(paths, filesystem=server, mode="RGB", size=(SIDE, SIDE), include_paths=True)
        .map_batches(Model, batch_size=BATCH, concurrency=ACTORS, fn_constructor_args=(name, weights))
        .write_parquet(target)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
