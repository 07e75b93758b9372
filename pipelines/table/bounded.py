"""A DuckDB connection that holds a fixed amount of memory and spills the rest to disk."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb


@contextmanager
def bounded_connection(purpose: str, *, memory: str, threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database for one piece of work; what outgrows `memory` goes to a temporary folder.

    `purpose` is part of the folder's name; `threads` is an upper limit, fewer are used on a smaller machine.
    """
    with tempfile.TemporaryDirectory(prefix=f"rayscan-{purpose}-") as folder, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit = '{memory}'")
        connection.execute(f"SET threads = {min(threads, os.cpu_count() or 1)}")
        connection.execute("SET temp_directory = '{}'".format(folder.replace("'", "''")))
        connection.execute("SET enable_progress_bar = false")  # it goes to stdout, where results go
        yield connection
