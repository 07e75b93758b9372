"""The search itself, on Ray Tune with Optuna's suggestions."""
