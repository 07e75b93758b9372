"""Nightly scoring: plan what has changed, score it shard by shard, account for every scan."""
