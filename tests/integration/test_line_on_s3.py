"""The whole pipeline as a person types it, every URI on a real S3 server: archive in, queryable Parquet out."""

import json
import subprocess

from pipelines.phantom import write_archive
from pipelines.storage import open_store
from tests.servers import S3Server, clean_environment


def test_the_whole_line_on_a_bucket(rayscan_command: str, s3: S3Server) -> None:
    bucket = s3.bucket()
    write_archive(open_store(f"{bucket}/films"), patients=40, seed=3, size=96)
    night = open_store(f"{bucket}/night")
    delivered = write_archive(
        night, patients=12, seed=4, size=96, layout="flat", formats=("jpeg", "png", "dicom"), broken=True
    )

    def rayscan(*args: str) -> dict[str, object] | list[dict[str, object]]:
        shown = subprocess.run(
            [rayscan_command, *args, "--json"],
            capture_output=True,
            text=True,
            env=clean_environment() | s3.environment(),
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        answer: dict[str, object] | list[dict[str, object]] = json.loads(shown.stdout)
        return answer

    rayscan("catalog", f"{bucket}/films", "--labels", "path", "--out", f"{bucket}/catalog")
    rayscan("prepare", f"{bucket}/catalog", "--size", "32", "--out", f"{bucket}/dataset")
    rayscan("train", f"{bucket}/dataset", "--model", "mlp", "--epochs", "1", "--out", f"{bucket}/bundle")
    scoring = ("score", f"{bucket}/night", "--model", f"{bucket}/bundle", "--out", f"{bucket}/scores")
    first = rayscan(*scoring, "--shard-size", "16")[-1]
    assert first["planned"] == delivered
    assert sum(first["counts"].values()) == delivered
    assert first["counts"]["failed"] == 0
    assert not first["conditional_put"], "rclone has none, and the run must say so"

    # As if the driver had been killed before its first commit: no record, a table without rows, one part never written.
    scores = open_store(f"{bucket}/scores")
    keys = [info.key for chunk in scores.list("scores") for info in chunk]
    part = next(key for key in keys if key.endswith(".parquet"))
    _, *commits = sorted(key for key in keys if "_delta_log" in key)
    for key in (part, *commits):
        scores.delete(key)
    scores.delete(f"runs/{first['run_id']}/run.json")
    resumed, again = rayscan(*scoring)
    assert (resumed["run_id"], resumed["resumed_shards"]) == (first["run_id"], first["shards"] - 1)
    assert resumed["counts"] == first["counts"]
    assert again["planned"] == 0

    rows = rayscan("query", f"{bucket}/scores", "SELECT uri, status, reason, probability FROM scores")
    assert len(rows) == len({row["uri"] for row in rows}) == delivered
    by_name = {str(row["uri"]).rpartition("/")[2]: row for row in rows}
    assert by_name["empty.jpeg"]["reason"] == "empty_file"
    assert by_name["text_renamed.jpeg"]["reason"] == "unknown_format"
    assert by_name["blank.png"]["status"] == "rejected"
    scored = [row["probability"] for row in rows if row["status"] == "scored"]
    assert len(scored) == first["counts"]["scored"] > 0
    assert all(0 <= probability <= 1 for probability in scored)
