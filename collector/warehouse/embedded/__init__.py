"""A real PostgreSQL of our own, for a machine without a database.

Owns the life of one server below one folder: the binaries of the extra ``embedded``, the account it runs
as, its files, and the processes that share it. Knows nothing of what is stored in it.
"""

from collector.warehouse.embedded.shared import EmbeddedPostgres

__all__ = ["EmbeddedPostgres"]
