"""The collector: the true history of AWS VM imports, kept in PostgreSQL."""

__version__ = "0.1.0"
