"""Benchmarks: one file per question, each a ratio against a limit measured in the same run."""
