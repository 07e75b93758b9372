"""The floor: two bare processes that fetch, decode at DCT scale and infer in OpenVINO bf16. No framework, no table.

    python floor.py s3://bucket/prefix MODEL.xml OUT.json

Each process takes every second key, fetches and decodes in two threads, normalises in numpy and infers 8 films at a
time on one core: what was fastest for both networks. The model takes float32 [N, 1, 224, 224] and gives logits.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path

PROCESSES, SIDE, BATCH, THREADS = 2, 224, 8, 2


def work(source: str, model: str, out: str, part: int) -> None:
    """Score one process's share; writes the time after each batch, and the probabilities."""
    import numpy as np
    import obstore

    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # or the import reports itself over the network
    import openvino
    from obstore.store import S3Store
    from PIL import Image

    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    store = S3Store(bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True})
    keys = sorted(info["path"] for chunk in obstore.list(store, prefix) for info in chunk)[part::PROCESSES]
    one_core = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", one_core)

    def film(key: str) -> np.ndarray:
        image = Image.open(BytesIO(bytes(obstore.get(store, key).bytes())))
        image.draft("L", (SIDE, SIDE))
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    stamps: list[tuple[float, int]] = []
    probabilities: list[float] = []
    with ThreadPoolExecutor(THREADS) as threads:
        left = iter(keys)
        ahead = deque(threads.submit(film, key) for key in islice(left, 2 * BATCH))
        while ahead:
            films = [ahead.popleft().result() for _ in range(min(BATCH, len(ahead)))]
            ahead += [threads.submit(film, key) for key in islice(left, BATCH)]
            grey = np.stack(films)[:, None].astype(np.float32)
            grey -= grey.mean(axis=(2, 3), keepdims=True)
            grey /= np.maximum(grey.std(axis=(2, 3), keepdims=True), 1.0)
            odds = np.exp(np.subtract(*compiled(grey)[0].T))  # of NORMAL
            probabilities += (1 / (1 + odds)).tolist()
            stamps.append((time.time(), len(films)))
    Path(out).write_text(json.dumps({"stamps": stamps, "probabilities": dict(zip(keys, probabilities, strict=True))}))


def main(source: str, model: str, out: str) -> None:
    """Start the processes and join what they wrote."""
    parts = [f"{out}.{part}" for part in range(PROCESSES)]
    running = [
        subprocess.Popen([sys.executable, __file__, source, model, name, str(part)]) for part, name in enumerate(parts)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(1)
    answers = [json.loads(Path(name).read_text()) for name in parts]
    stamps = sorted(stamp for answer in answers for stamp in answer["stamps"])
    Path(out).write_text(
        json.dumps({"stamps": stamps, "probabilities": answers[0]["probabilities"] | answers[1]["probabilities"]})
    )


if __name__ == "__main__":
    if len(sys.argv) == 5:
        work(*sys.argv[1:4], int(sys.argv[4]))
    else:
        main(*sys.argv[1:])
