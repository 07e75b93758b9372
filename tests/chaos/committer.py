"""The driver's side of a run without its model: `python -m tests.chaos.committer SCORES SHARDS`, to be killed.

It takes in what the one before it left, writes the parts that are missing and commits them in small groups.
"""

import sys

from pipelines.scoring import commits
from pipelines.scoring.plan import Plan
from pipelines.storage import open_store
from pipelines.table.delta import create_table
from tests.pipelines.table.parts import put_part

RUN = "20260303T020000Z-abc123"
MODEL = "model1"
ROWS = 4


def plan_of(shards: int) -> Plan:
    """A run of so many shards of ROWS rows."""
    return Plan(
        run_id=RUN,
        model_id=MODEL,
        bundle="file:///bundle",
        operating_point="balanced",
        source="file:///archive",
        date="2026-03-03",
        planned=shards * ROWS,
        listed=shards * ROWS,
        shards=shards,
        bytes=0,
        plan_hash="0",
        created="2026-03-03T02:00:00+00:00",
    )


def main(scores: str, shards: int) -> None:
    """Write and commit what is missing; a line a part, so that the killer sees how far it is."""
    store = open_store(scores)
    table = create_table(store, conditional=store.has_conditional_put())
    done = commits.take_in(table, plan_of(shards))
    commits.GROUP_PARTS = 3  # type: ignore[misc]
    group = commits.GroupCommits(table, RUN)
    for shard in sorted(set(range(shards)) - done):
        uris = [f"s3://films/{shard}-{row}.dcm" for row in range(ROWS)]
        group.add(put_part(store, RUN, shard, uris, model_id=MODEL))
        print(shard, flush=True)
    group.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
