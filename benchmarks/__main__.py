"""``make bench``: run every benchmark on a fresh PostgreSQL and print one table."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks import cadence, clients, cycle, fetch, files, load, page, peers, reads, startup
from benchmarks.load import Row
from collector.warehouse.embedded import EmbeddedPostgres


@contextmanager
def _server() -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder) / "server") as server:
            yield "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**server.conninfo())


def _all_rows(url: str) -> Iterator[Row]:
    for benchmark in (load, reads, peers, files, cycle):
        yield from benchmark.rows(url)
    for benchmark in (fetch, page, clients, startup, cadence):
        yield from benchmark.rows()


def main() -> None:
    """Describe the machine, then print a row for each question."""
    with _server() as url:
        with psycopg.connect(url) as connection:
            version = connection.info.server_version // 10000
        print(f"PostgreSQL {version}, Python {platform.python_version()}, {os.cpu_count()} cores; medians\n")
        print("| question | ours | limit | ratio |\n|---|---|---|---|")
        for row in _all_rows(url):
            ours, limit = f"{row.ours:.4g}{row.unit}", f"{row.limit:.4g}{row.unit}"
            print(f"| {row.question} | {ours} | {limit} | {row.ours / row.limit:.2f} |", flush=True)


if __name__ == "__main__":
    main()
