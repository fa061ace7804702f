"""Looks on disk: nothing is lost, whatever happens to the disk, to the files and to whoever writes them."""

import json
import os
import pwd
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from collector.aws.transform import import_task, wire_task
from collector.domain import Failure, Look, Scan, Target
from collector.errors import SpoolError
from collector.spool import ABANDONED_AFTER, Spool
from tests.factories import TARGET, at, numbered, scan, task

IS_ROOT = os.geteuid() == 0
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
OTHER = Target("444455556666", "us-east-1")
PLENTY = 2**30

# Another process that shares a spool: appends the looks of so many minutes, one at a time or in batches, and
# says which are kept; or takes everything that waits until its input ends, and says what that was.
PROCESS = """
import itertools, select, sys
from pathlib import Path
from collector.aws.transform import import_task, wire_task
from collector.spool import Spool
from tests.factories import numbered
spool = Spool(Path(sys.argv[2]), limit=2**30, to_wire=wire_task, from_wire=import_task)
match sys.argv[1]:
    case "append":
        for minutes in range(int(sys.argv[3]), int(sys.argv[4])):
            spool.append([numbered(minutes, {"a": minutes})])
            print(minutes, flush=True)
    case "append batches":
        for minutes in itertools.count(step=5):
            spool.append([numbered(minute, {"a": 1}) for minute in range(minutes, minutes + 5)])
            print(minutes, flush=True)
    case "drain":
        while (found := spool.waiting(7)) or not select.select([sys.stdin], [], [], 0.001)[0]:
            for each in found:
                print(each.look.tasks[0].progress, flush=True)
            spool.remove(found)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a spool may live; not made yet."""
    return tmp_path / "data" / "spool"


@pytest.fixture
def spool(folder: Path) -> Spool:
    """A spool with room for everything."""
    return spool_in(folder)


def spool_in(folder: Path, *, limit: int = PLENTY) -> Spool:
    """Return a spool as the collector makes it."""
    return Spool(folder, limit=limit, to_wire=wire_task, from_wire=import_task)


def failure(minutes: float, *, region: str | None = TARGET.region) -> Failure:
    """Return a look that failed."""
    return Failure(TARGET.account_id, region, at(minutes), "AuthFailure", "the clock's wrong: é \ud800\0")


def waiting(spool: Spool, limit: int = 1000) -> list[Look]:
    """Return the looks that wait, without their files."""
    return [each.look for each in spool.waiting(limit)]


def files(folder: Path) -> list[Path]:
    """Return all files of looks."""
    return sorted(folder.glob("*/*/*.look"), key=lambda path: path.name)


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start another process that uses the spool."""
    what, *rest = arguments
    command = [sys.executable, "-c", PROCESS, str(what), str(folder), *map(str, rest)]
    place = Path(__file__).parent.parent
    return subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# What goes in comes out


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_scan_comes_back_as_it_was(spool: Spool, path: Path) -> None:
    """With every field and hash, complete or not."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tasks = [import_task(wire) for wire in content.get("ImportImageTasks", [content])]
    looks = [scan(1, *tasks), scan(2, *tasks, complete=False, source="file")]
    spool.append(looks)
    assert waiting(spool) == looks


def test_a_failure_comes_back_as_it_was(spool: Spool) -> None:
    """Whatever text its message holds, and also where the account's Regions were not known."""
    looks = [failure(1), failure(2, region=None)]
    spool.append(looks)
    assert waiting(spool) == looks


def test_the_oldest_comes_first(spool: Spool) -> None:
    """Over all targets and kinds, however they went in; no more than asked for."""
    looks: list[Look] = [
        scan(1, target=OTHER),
        failure(2),
        scan(2.00001),
        failure(3, region=None),
        scan(4),
        scan(5, target=OTHER),
    ]
    for look in random.Random(1).sample(looks, len(looks)):
        spool.append([look])
    assert waiting(spool, 4) == looks[:4]
    assert waiting(spool, 0) == []


def test_batches_are_what_waited_when_they_began(spool: Spool, folder: Path) -> None:
    """Those that another process drained are skipped, and what is new comes with the next listing."""
    spool.append(scan(minutes) for minutes in range(5))
    batches = spool.batches(2)
    found = [[spooled.look for spooled in next(batches)]]
    other = spool_in(folder)
    other.remove(other.waiting(3))
    spool.append([scan(5)])
    found += [[spooled.look for spooled in batch] for batch in batches]
    assert found == [[scan(0), scan(1)], [scan(3), scan(4)]]
    assert waiting(spool) == [scan(3), scan(4), scan(5)]


def test_what_waits_is_there_for_the_next_process(spool: Spool, folder: Path) -> None:
    """With its number and size."""
    spool.append([scan(1), failure(2)])
    other = spool_in(folder)
    assert (other.files, other.bytes) == (spool.files, spool.bytes)
    assert waiting(other) == [scan(1), failure(2)]


def test_files_and_bytes_say_what_waits(spool: Spool, folder: Path) -> None:
    """In blocks of the disk, which is what runs out."""
    spool.append([numbered(1, {"a": 1, "b": 2}), failure(2)])
    taken = sum(path.stat().st_blocks * 512 for path in files(folder))
    assert (spool.files, spool.bytes) == (2, taken)
    spool.remove(spool.waiting(1))
    assert (spool.files, spool.bytes) == (1, files(folder)[0].stat().st_blocks * 512)


def test_an_instant_of_another_zone_is_named_in_utc(spool: Spool) -> None:
    """A name is for sorting, whatever the clock showed."""
    east = replace(failure(60), failed_at=at(60).astimezone(timezone(timedelta(hours=9))))
    spool.append([east, failure(61), failure(59)])
    assert waiting(spool) == [failure(59), east, failure(61)]


def test_what_is_removed_is_gone_with_its_folders(spool: Spool, folder: Path) -> None:
    """A second time does no harm, and the next look makes its folder anew."""
    spool.append([scan(1), scan(2, target=OTHER), failure(3, region=None)])
    found = spool.waiting(3)
    spool.remove(found)
    spool.remove(found)
    assert list(folder.iterdir()) == []
    assert (spool.files, spool.bytes) == (0, 0)
    spool.append([scan(4)])
    assert waiting(spool) == [scan(4)]


def test_only_the_owner_may_look(spool: Spool, folder: Path) -> None:
    """What is in the folder is what is in the account."""
    spool.append([scan(1)])
    (file,) = files(folder)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *file.parents[:2], file)]
    assert modes == [0o700, 0o700, 0o700, 0o600]


@pytest.mark.parametrize("name", ["../../up", "damaged", "..", "", "_", "a/b\0c"])
def test_no_account_leads_out_of_the_folder(spool: Spool, folder: Path, name: str) -> None:
    """Nor to where the damaged files are."""
    looks: list[Look] = [scan(1, target=Target(name, name)), replace(failure(2), account_id=name)]
    spool.append(looks)
    assert waiting(spool) == looks
    assert {*folder.parent.rglob("*.look")} == {*files(folder)}


# Files of other releases


def rewrite(path: Path, *, header: dict[str, Any], payload: dict[str, Any]) -> None:
    """Give a file more members, as another release may write it."""
    first, second = path.read_bytes().splitlines()
    content = json.dumps(json.loads(second) | payload).encode()
    head = json.loads(first) | {"sha256": sha256(content).hexdigest()} | header
    path.write_bytes(json.dumps(head).encode() + b"\n" + content + b"\n")


def test_unknown_members_are_ignored(spool: Spool, folder: Path) -> None:
    """A newer release may have written them, and an older one must not lose the look."""
    spool.append([scan(1, task("a")), failure(2)])
    for path in files(folder):
        rewrite(path, header={"new": [1]}, payload={"newer": {"still": True}})
    assert waiting(spool) == [scan(1, task("a")), failure(2)]


def test_a_newer_format_is_left_alone(spool: Spool, folder: Path) -> None:
    """And is named once; what comes after it is read."""
    spool.append([scan(1), scan(2)])
    rewrite(files(folder)[0], header={"collector_spool": 2}, payload={})
    with capture_logs() as logs:
        assert waiting(spool) == waiting(spool) == [scan(2)]
    (entry,) = logs
    assert entry["file"] == str(files(folder)[0])
    assert entry["cause"] == "a newer release wrote it (format 2) and must read it"
    assert (spool.files, spool.damaged) == (2, 0)


def test_the_header_says_what_is_in_the_file(spool: Spool, folder: Path) -> None:
    """The format is a promise to other releases."""
    look = scan(1, task("a"), complete=False)
    spool.append([look])
    header, payload = files(folder)[0].read_bytes().splitlines()
    assert json.loads(header) == {
        "collector_spool": 1,
        "sha256": sha256(payload).hexdigest(),
        "complete": False,
        "digest": look.digest.hex(),
        "kind": "scan",
    }
    assert json.loads(payload)["tasks"] == [{"ImportTaskId": "import-ami-a", "Status": "active"}]
    assert files(folder)[0].name.startswith("20260101T000100000000Z-")


# Damage


def damaged(folder: Path, content: bytes) -> tuple[list[Look], int]:
    """Put one file into a new spool; return the looks that are read and how many files were set aside."""
    path = folder / TARGET.account_id / TARGET.region / "20260101T000000000000Z-0.look"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    spool = spool_in(folder)
    found = waiting(spool)
    assert path.exists() == (spool.files == 1)
    result = found, spool.damaged
    shutil.rmtree(folder)
    return result


def test_a_file_cut_short_is_set_aside_wherever_it_ends(spool: Spool, folder: Path, tmp_path: Path) -> None:
    """Only the last line break is no loss."""
    look = scan(1, task("a"))
    spool.append([look])
    content = files(folder)[0].read_bytes()
    results = [damaged(tmp_path / "other", content[:length]) for length in range(len(content) + 1)]
    assert results == [([], 1)] * (len(content) - 1) + [([look], 0)] * 2


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_byte_never_makes_another_look(
    spool: Spool, folder: Path, tmp_path: Path, seed: int
) -> None:
    """It is set aside, or harmless, or seems to be of a newer format and is left alone."""
    look = scan(1, task("a"))
    spool.append([look])
    content = files(folder)[0].read_bytes()
    rng = random.Random(seed)
    seen = Counter[str]()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= rng.randrange(1, 256)
        match damaged(tmp_path / "other", bytes(flipped)):
            case ([found], 0):
                assert found == look
                seen["harmless"] += 1
            case ([], 1):
                seen["set aside"] += 1
            case ([], 0):
                assert int(json.loads(flipped.splitlines()[0])["collector_spool"]) > 1
                seen["newer"] += 1
            case other:
                pytest.fail(f"{place}: {other}")
    assert seen["set aside"] > len(content.splitlines()[1])
    assert seen["newer"] <= 1


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        ({"tasks": [{"Status": "active"}]}, "must have an ImportTaskId"),
        ({"tasks": [{"ImportTaskId": "a"}] * 2}, "occurs twice"),
        ({"tasks": 5}, "not iterable"),
        ({"observed_at": "yesterday"}, "isoformat"),
        ({"observed_at": "2026-01-01T00:00:00+01:00"}, "not UTC"),
    ],
)
def test_what_cannot_be_a_look_is_set_aside(
    spool: Spool, folder: Path, payload: dict[str, Any], cause: str
) -> None:
    """Though its checksum is right; named once, with its cause, and what comes after it is read."""
    spool.append([scan(1), scan(2)])
    broken = files(folder)[0]
    rewrite(broken, header={}, payload=payload)
    content = broken.read_bytes()
    with capture_logs() as logs:
        assert waiting(spool, 1) == waiting(spool) == [scan(2)]
    (entry,) = logs
    assert (entry["log_level"], entry["file"]) == ("error", str(broken))
    assert cause in entry["cause"]
    assert Path(entry["now"]).read_bytes() == content
    assert (spool.files, spool.damaged) == (1, 1)


def test_damaged_files_of_one_name_are_all_kept(spool: Spool, folder: Path) -> None:
    """A copy that somebody puts back does not replace the first."""
    for content in (b"one", b"two"):
        spool.append([scan(1)])
        files(folder)[0].write_bytes(content)
        files(folder)[0].rename(files(folder)[0].with_name("same.look"))
        assert waiting(spool) == []
    assert sorted(path.read_bytes() for path in (folder / "damaged").iterdir()) == [b"one", b"two"]
    assert [path.name for path in folder.iterdir()] == ["damaged"]


def test_a_file_that_nobody_finishes_is_set_aside_after_an_hour(spool: Spool, folder: Path) -> None:
    """Until then somebody may be writing it; it is never read."""
    spool.append([scan(1), scan(2)])
    old, young = files(folder)
    old, young = (path.rename(path.with_name(f".{path.name}.part")) for path in (old, young))
    then = time.time() - ABANDONED_AFTER.total_seconds() - 1
    os.utime(old, (then, then))
    assert waiting(spool) == []
    assert (old.exists(), young.exists(), spool.files, spool.damaged) == (False, True, 0, 1)


def test_a_file_that_vanishes_is_skipped(spool: Spool, folder: Path) -> None:
    """Another process drained it and said nothing."""
    spool.append([scan(1), scan(2)])
    found = spool.waiting(2)
    files(folder)[0].unlink()
    assert waiting(spool) == [scan(2)]
    assert spool.files == 1
    spool.remove(found)
    assert (spool.files, spool.bytes) == (0, 0)


def test_a_file_that_cannot_be_opened_stays(spool: Spool, folder: Path) -> None:
    """It may belong to another account, or the disk be ill for a moment; it is named once."""
    spool.append([scan(1)])
    (file,) = files(folder)
    file.rename(folder / "elsewhere")
    file.mkdir()
    with capture_logs() as logs:
        assert waiting(spool) == waiting(spool) == []
    assert [entry["cause"] for entry in logs] == ["Is a directory"]
    file.rmdir()
    (folder / "elsewhere").rename(file)
    assert waiting(spool) == [scan(1)]


def test_reading_a_few_does_not_read_the_rest(spool: Spool, folder: Path) -> None:
    """A gigabyte may wait."""
    spool.append([scan(minutes) for minutes in range(5)])
    for path in files(folder)[2:]:
        path.write_bytes(b"damaged")
    assert waiting(spool, 2) == [scan(0), scan(1)]
    assert spool.damaged == 0


# A disk that refuses


def run(*command: str) -> bool:
    """Run one of the system's commands; say whether it ended well."""
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if not IS_ROOT:
        pytest.skip("only root mounts a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    if not run("mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(place)):
        pytest.skip("this machine lets nobody mount a small disk")
    yield place
    assert run("umount", str(place))


@contextmanager
def as_somebody() -> Iterator[Path]:
    """Do without root's power, and have a folder of one's own for the time."""
    somebody = pwd.getpwnam("nobody").pw_uid if IS_ROOT else os.geteuid()
    place = Path(tempfile.mkdtemp(prefix="spool-"))
    os.chown(place, somebody, -1)
    us = os.geteuid()
    os.seteuid(somebody)
    try:
        yield place
    finally:
        os.seteuid(us)
        for path in (place, *place.glob("*")):
            path.chmod(0o700)
        shutil.rmtree(place)


def test_a_full_disk_refuses_the_batch_and_keeps_the_rest(small_disk: Path) -> None:
    """None of it stays, and what was there before is whole; with room again it goes on."""
    spool = spool_in(small_disk / "spool")
    spool.append([scan(1)])
    large = [scan(2 + number, task("a", Description="x" * 50_000)) for number in range(8)]
    with pytest.raises(SpoolError, match=f"cannot be kept in {small_disk}/spool: No space left on device"):
        spool.append(large)
    assert [path.name for path in (small_disk / "spool").rglob("*") if path.is_file()] == [
        files(small_disk / "spool")[0].name
    ]
    assert (spool.files, waiting(spool)) == (1, [scan(1)])
    spool.append(large[:3])
    assert waiting(spool) == [scan(1), *large[:3]]


def test_a_read_only_disk_is_named(small_disk: Path) -> None:
    """When looks are to go in, and when they are to go out; what waits can still be read."""
    spool = spool_in(small_disk / "spool")
    spool.append([scan(1)])
    assert run("mount", "-o", "remount,ro", str(small_disk))
    with pytest.raises(SpoolError, match="Read-only file system"):
        spool.append([scan(2)])
    found = spool.waiting(2)
    assert [each.look for each in found] == [scan(1)]
    with pytest.raises(SpoolError, match=r"cannot be removed from .* Read-only file system"):
        spool.remove(found)
    assert spool.files == 1


def test_a_place_that_we_may_not_write_is_named() -> None:
    """At once, not when the database goes away."""
    with as_somebody() as place:
        place.chmod(0o500)
        with pytest.raises(SpoolError, match=f"{place}/spool: Permission denied"):
            spool_in(place / "spool")


def test_a_folder_that_we_may_no_longer_write_is_named() -> None:
    """When a look is to go in; what waits can still be read."""
    with as_somebody() as place:
        spool = spool_in(place / "spool")
        spool.append([scan(1)])
        (place / "spool").chmod(0o500)
        with pytest.raises(SpoolError, match=f"{place}/spool: Permission denied"):
            spool.append([scan(2, target=OTHER)])
        assert waiting(spool) == [scan(1)]


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    """As root as well, whom no mode keeps out."""
    (tmp_path / "spool").write_text("")
    with pytest.raises(SpoolError, match=f"{tmp_path}/spool: Not a directory"):
        spool_in(tmp_path / "spool")


def test_a_look_that_cannot_be_written_leaves_nothing(spool: Spool, folder: Path) -> None:
    """Its folder is a file; the looks before it in the batch are not kept either."""
    (folder / OTHER.account_id).write_text("")
    with pytest.raises(SpoolError, match=rf"Not a directory \({folder}/{OTHER.account_id}/"):
        spool.append([scan(1), scan(2, target=OTHER), scan(3)])
    assert (waiting(spool), files(folder), spool.files, spool.bytes) == ([], [], 0, 0)
    assert [path.name for path in folder.iterdir()] == [OTHER.account_id]


def test_a_lost_folder_is_made_again(spool: Spool, folder: Path) -> None:
    """Somebody tidied up."""
    spool.append([scan(1)])
    shutil.rmtree(folder)
    assert waiting(spool) == []
    spool.append([scan(2)])
    assert (waiting(spool), spool.files) == ([scan(2)], 1)


# The limit


def is_full(spool: Spool) -> bool:
    """Say whether a spool is full though it made room."""
    spool.make_room()
    return spool.full


def limited(folder: Path, looks: Iterable[Look]) -> Spool:
    """Return a spool that holds these looks and has just reached its limit."""
    spool = spool_in(folder)
    spool.append(looks)
    return spool_in(folder, limit=spool.bytes)


def test_below_the_limit_nothing_is_thinned(folder: Path) -> None:
    """Every look counts as long as there is room for it."""
    looks = [scan(minutes) for minutes in range(5)]
    spool = limited(folder, looks)
    spool.remove(spool.waiting(1))
    assert not is_full(spool)
    assert waiting(spool) == looks[1:]


def test_of_a_run_the_first_and_the_last_stay(folder: Path) -> None:
    """Each target has its own runs."""
    runs = [numbered(minutes, {"a": minutes // 4}) for minutes in range(8)]
    others = [numbered(minutes + 0.5, {"a": 1}, target=OTHER) for minutes in range(4)]
    spool = limited(folder, [*runs, *others])
    assert not is_full(spool)
    assert waiting(spool) == [runs[0], others[0], runs[3], others[3], runs[4], runs[7]]
    assert spool.files == len(files(folder)) == 6


def test_what_lies_between_ends_a_run(folder: Path) -> None:
    """Partial scans and failures stay, and so do the scans beside them: one ended the outage."""
    partial = [numbered(minutes, {"a": 1}, complete=False) for minutes in (4, 5, 6)]
    whole = [numbered(minutes, {"a": 1}) for minutes in (1, 2, 3, 7, 8, 10, 11, 12, 13)]
    failures = [failure(9)]
    spool = limited(folder, [*partial, *whole, *failures])
    assert not is_full(spool)
    dropped = {whole[1], whole[6], whole[7]}
    assert set(waiting(spool)) == {*partial, *whole, *failures} - dropped


def test_a_run_whose_end_is_damaged_stays(folder: Path) -> None:
    """Its inner scans are what is left of it."""
    looks = [scan(minutes) for minutes in range(4)]
    spool = limited(folder, looks)
    with files(folder)[-1].open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"?")
    assert is_full(spool)
    assert waiting(spool) == looks[:3]


def test_it_is_full_when_thinning_does_not_help(folder: Path) -> None:
    """Nothing is dropped, appending goes on, and with room again it is not full."""
    looks = [numbered(minutes, {"a": minutes}) for minutes in range(4)]
    spool = limited(folder, looks)
    full = [is_full(spool)]
    spool.append([numbered(5, {"a": 5})])
    full.append(is_full(spool))
    assert waiting(spool) == [*looks, numbered(5, {"a": 5})]
    spool.remove(spool.waiting(2))
    assert [*full, is_full(spool)] == [True, True, False]


def test_it_is_not_full_when_another_process_drained_it(folder: Path) -> None:
    """Though nobody told us; what it left is counted."""
    spool = limited(folder, [numbered(minutes, {"a": minutes}) for minutes in range(4)])
    other = spool_in(folder)
    other.remove(other.waiting(3))
    assert not is_full(spool)
    assert (spool.files, spool.bytes) == (other.files, other.bytes)


def test_a_full_spool_notices_another_process_in_the_end(folder: Path) -> None:
    """It measures again after a while, not each time."""
    spool = limited(folder, [numbered(minutes, {"a": minutes}) for minutes in range(4)])
    was_full = is_full(spool)
    other = spool_in(folder)
    other.remove(other.waiting(4))
    give_up = time.monotonic() + 30
    while is_full(spool):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert (was_full, spool.files) == (True, 0)


def test_what_was_thinned_can_be_thinned_again(folder: Path) -> None:
    """The run goes on after the limit was reached."""
    spool = limited(folder, [scan(minutes) for minutes in range(4)])
    full = [is_full(spool)]
    spool.append([scan(minutes) for minutes in range(4, 8)])
    assert [*full, is_full(spool)] == [False, False]
    assert waiting(spool) == [scan(0), scan(7)]


# Many at once


def test_threads_share_a_spool(spool: Spool, folder: Path) -> None:
    """Some append while others drain, and folders come and go between them: all arrives, once."""
    looks = [failure(minutes, region=f"region-{minutes % 3}") for minutes in range(120)]
    found: list[Look] = []
    ended = threading.Event()

    def drain() -> None:
        while (taken := spool.waiting(3)) or not ended.is_set():
            spool.remove(taken)
            found.extend(each.look for each in taken)

    with ThreadPoolExecutor(5) as pool:
        drains = [pool.submit(drain) for _ in range(2)]
        try:
            list(pool.map(lambda look: spool.append([look]), looks))
        finally:
            ended.set()
        for drained in drains:
            drained.result()
    assert set(found) == set(looks)
    assert (spool.files, spool.bytes, list(folder.iterdir())) == (0, 0, [])


def test_two_processes_append_and_two_drain(folder: Path) -> None:
    """Nothing is lost and nothing is left, though each knows nothing of the others."""
    drains = [start(folder, "drain") for _ in range(2)]
    writers = [start(folder, "append", first, first + 100) for first in (0, 1000)]
    appended = {line for writer in writers for line in writer.communicate(timeout=60)[0].split()}
    drained = {line for drain in drains for line in drain.communicate(timeout=60)[0].split()}
    assert len(appended) == 200
    assert drained == appended
    assert list(folder.iterdir()) == []


def test_what_was_appended_outlives_kill_9(folder: Path) -> None:
    """At any moment: whatever the process said it kept is there, whole, and of a batch all or some."""
    kept = -1
    for _ in range(5):
        with start(folder, "append batches") as process:
            assert process.stdout
            said = [process.stdout.readline()]
            time.sleep(random.random() / 50)  # the moment is what varies
            process.kill()
            said += process.stdout.readlines()
        kept = max(int(line) for line in said if line.strip())
        spool = spool_in(folder)
        minutes = [look.observed_at for look in waiting(spool, 10_000) if isinstance(look, Scan)]
        assert set(minutes) >= {at(minute) for minute in range(kept + 5)}
        assert max(minutes) < at(kept + 10)
        assert (spool.damaged, len(minutes)) == (0, spool.files)
        shutil.rmtree(folder)
    assert kept >= 0
