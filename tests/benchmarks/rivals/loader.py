"""A tuned torch DataLoader loop: boto3, DCT-scaled decode in two workers, channels_last, bf16 autocast.

    python loader.py s3://bucket/prefix NAME WEIGHTS.safetensors THREADS OUT.json

NAME is timm's. Two workers fetch and decode, the main process normalises and infers 32 films at a time.
"""

import json
import os
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

SIDE, BATCH, WORKERS = 224, 32, 2


class Films(Dataset[torch.Tensor]):
    """Films of a bucket as uint8 [224, 224]."""

    def __init__(self, bucket: str, keys: list[str]) -> None:
        self.bucket, self.keys, self.client = bucket, keys, None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.client = self.client or connect()  # one a worker
        data = self.client.get_object(Bucket=self.bucket, Key=self.keys[index])["Body"].read()
        image = Image.open(BytesIO(data))
        image.draft("L", (SIDE, SIDE))
        return torch.from_numpy(np.array(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))


def connect() -> Any:
    """A client of the server that the environment names."""
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def main(source: str, name: str, weights: str, threads: str, out: str) -> None:
    """Score every film; writes the time after each batch, and the probabilities."""
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    pages = connect().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = sorted(item["Key"] for page in pages for item in page["Contents"])
    torch.set_num_threads(int(threads))
    network = timm.create_model(name, in_chans=1, num_classes=2)
    network.load_state_dict(safetensors.torch.load_file(weights))
    network = network.eval().to(memory_format=torch.channels_last)
    loader = DataLoader(Films(bucket, keys), batch_size=BATCH, num_workers=WORKERS, prefetch_factor=4)
    stamps: list[tuple[float, int]] = []
    probabilities: list[float] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for films in loader:
            grey = films.float().unsqueeze(1).contiguous(memory_format=torch.channels_last)
            deviation, mean = torch.std_mean(grey, dim=(2, 3), keepdim=True, correction=0)
            logits = network((grey - mean) / deviation.clamp_min(1.0))
            probabilities += torch.softmax(logits.float(), dim=1)[:, 1].tolist()
            stamps.append((time.time(), len(films)))
    Path(out).write_text(json.dumps({"stamps": stamps, "probabilities": dict(zip(keys, probabilities, strict=True))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
