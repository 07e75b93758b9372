"""Nightly scoring: plan what is stale, score it shard by shard, account for every scan."""
