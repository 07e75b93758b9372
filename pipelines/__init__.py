"""How scans flow: from object storage through Ray Data into Parquet."""
