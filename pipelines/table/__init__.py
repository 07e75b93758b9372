"""The table of scores: parts of Parquet, the views over them, runs on record, drift."""
