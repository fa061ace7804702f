"""The soak in short: two simulated days in under a minute. ``make soak`` does twenty."""

from pathlib import Path

import pytest

from tests.soak import Soak


# An end in haste leaves a connection to whoever still waits for an answer on it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_days_of_faults_leave_nothing_wrong(server_url: str, migrated: str, tmp_path: Path) -> None:
    """History, outages and spool are what they must be, and nothing has grown."""
    report = Soak(server_url, migrated, tmp_path, days=2, seconds=40, seed=7).run()
    print(*report.lines(), sep="\n")  # noqa: T201 - shown where it fails
    assert report.wrong == []
    assert report.days >= 2
    assert report.counts["complete"] > 200
    assert len(report.faults) > 10
