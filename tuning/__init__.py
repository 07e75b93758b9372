"""The search for a model: one training loop, trials, studies."""
