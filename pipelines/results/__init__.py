"""Asking the scores: SQL views and report pages."""
