"""Where and when saved files were taken: by flags, by their paths, never by their own times."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from collector.commands.saved_files import (
    EXAMPLE,
    PathPattern,
    Place,
    SavedFile,
    find_files,
    instant,
    place_files,
)
from collector.domain import Target
from collector.errors import UsageError

TAKEN = datetime(2026, 3, 1, 10, 15, tzinfo=UTC)
TARGET = Target("111122223333", "eu-west-1")
FLAGS = Place("111122223333", "eu-west-1", TAKEN)


def known_regions() -> list[str]:
    """Name two Regions."""
    return ["eu-west-1", "us-east-1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files in it, some of them below, one of them hidden."""
    for name in ("b.json", "a.json", "deep/er/c.json.gz", ".hidden", ".git/d.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["."], ["a.json", "b.json", "deep/er/c.json.gz"]),
        (["a.json", "a.json"], ["a.json"]),
        (["*.json"], ["a.json", "b.json"]),
        (["**/*.gz"], ["deep/er/c.json.gz"]),
        (["-", "b.json"], ["-", "b.json"]),
    ],
)
def test_files_folders_and_globs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], found: list[str]
) -> None:
    """Each file once, in order; what is hidden stays so."""
    monkeypatch.chdir(folder)
    assert find_files(arguments) == (found, [])


def test_a_pipe_is_as_good_as_a_file(tmp_path: Path) -> None:
    """As a shell makes of ``<(aws …)``."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    assert find_files([str(tmp_path / "pipe")]) == ([str(tmp_path / "pipe")], [])


@pytest.mark.parametrize(
    ("argument", "fault"),
    [
        ("nope.json", "nope.json: there is no such file"),
        ("*.nope", "*.nope: there is no such file"),
        ("empty", "empty: there is no file in this folder"),
        ("", ": there is no such file"),
        ("a\0b", "a\0b: cannot be read: embedded null byte"),
    ],
)
def test_what_is_not_there_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, argument: str, fault: str
) -> None:
    """Whatever is wrong with an argument."""
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    assert find_files([argument]) == ([], [fault])


@pytest.mark.parametrize(
    ("pattern", "path", "place"),
    [
        (EXAMPLE, "/srv/111122223333/eu-west-1/2026-03-01T101500Z.json", FLAGS),
        (EXAMPLE, "111122223333\\eu-west-1\\2026-03-01T101500Z.json", FLAGS),
        (
            "{region}_{observed_at:%Y%m%d%H%M}.json*",
            "x/eu-west-1_202603011015.json.gz",
            Place(None, "eu-west-1", TAKEN),
        ),
        (
            "{account}/{observed_at:%Y/%m/%d}/*/{observed_at:%H.%M}",
            "111122223333/2026/03/01/any/10.15",
            Place("111122223333", None, TAKEN),
        ),
        ("{observed_at:%Y-%m-%dT%H:%M:%S%z}", "2026-03-01T12:15:00+02:00", Place(None, None, TAKEN)),
        (EXAMPLE, "111122223333/eu-west-1/2026-03-01.json", None),
        ("{account}/x", "9111122223333/x", None),
    ],
)
def test_path_patterns(pattern: str, path: str, place: Place | None) -> None:
    """Held against the end of the path; without a zone of its own an instant is UTC."""
    assert PathPattern(pattern).place(path) == place


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("{acount}/x", "{acount} is none of {account}, {region} and {observed_at:FORMAT}"),
        ("{observed_at}", "{observed_at} is none of"),
        ("{observed_at:%Q}", "%Q is not understood"),
    ],
)
def test_a_pattern_that_cannot_be_understood_is_wrong_usage(pattern: str, fault: str) -> None:
    """The part at fault is named."""
    with pytest.raises(UsageError, match=r"^--path-pattern: ") as caught:
        PathPattern(pattern)
    assert fault in str(caught.value)


def test_paths_tell_what_flags_do_not() -> None:
    """And what both tell must be the same: a file that is stored for the wrong target stays there."""
    pattern = PathPattern("{region}/{observed_at:%Y%m%dT%H%M}")
    names = ["us-east-1/20260301T1015", "eu-west-1/20260301T1015", "elsewhere"]
    placed, faults = place_files(names, Place("111122223333", "us-east-1"), pattern, known_regions)
    assert placed == [SavedFile(names[0], Target("111122223333", "us-east-1"), TAKEN)]
    assert faults == [
        "eu-west-1/20260301T1015: its path says eu-west-1, and --region says us-east-1: name one of them",
        "elsewhere: its path does not fit --path-pattern",
    ]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("20263301", "x/20263301: '20263301' in its path is no instant"),
        ("21260301", "x/21260301: '21260301' lies in the future"),
        ("19990301", "x/19990301: '19990301' lies before EC2 began"),
    ],
)
def test_an_impossible_instant_in_a_path_is_named(name: str, fault: str) -> None:
    """The other files are placed."""
    pattern = PathPattern("{observed_at:%Y%m%d}")
    placed, faults = place_files(
        [f"x/{name}", "x/20260301"], FLAGS._replace(observed_at=None), pattern, known_regions
    )
    assert (len(placed), faults) == (1, [fault])


def test_a_region_that_a_path_makes_up_is_named() -> None:
    """With the file that says so; the other files are placed."""
    names = [f"111122223333/{region}/2026-03-01T101500Z.json" for region in ("eu-west-9", "eu-west-1")]
    placed, faults = place_files(names, Place(), PathPattern(EXAMPLE), known_regions)
    assert [file.name for file in placed] == names[1:]
    assert faults == [f"{names[0]}: no Region is called 'eu-west-9', as its path says"]


def test_a_file_without_an_instant_is_refused() -> None:
    """Its own time is reset by any copy."""
    placed, (fault,) = place_files(["a", "b"], Place("111122223333", "eu-west-1"), None, known_regions)
    assert placed == []
    assert "--observed-at" in fault
    assert "--path-pattern" in fault


@pytest.mark.parametrize("offset", [timedelta(minutes=1), timedelta(days=400)])
def test_the_future_is_no_instant(offset: timedelta) -> None:
    """Not even a minute of it."""
    with pytest.raises(ValueError, match="lies in the future"):
        instant((datetime.now(UTC) + offset).isoformat())
