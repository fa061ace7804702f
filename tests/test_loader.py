"""The loader: what is put is stored in order, or waits on disk, whatever the database and the disk do."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from collector.aws.transform import import_task, wire_task
from collector.domain import Failure, Look, Scan, Target
from collector.loader import Loader
from collector.outcomes import Tally
from collector.spool import Spool
from collector.warehouse import schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import Patience, connect_to_parameters, connect_to_url, make_engine
from collector.warehouse.recording import record
from tests.absence import frozen, locked, shut
from tests.factories import TARGET, at, numbered, scan, task
from tests.simulation import eventually, rows

OTHER = Target("444455556666", "us-east-1")
Away = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def away(server_url: str, database_url: str) -> Away:
    """Take this test's database away for a while."""
    return lambda: shut(server_url, database_url)


@dataclass
class Stand:
    """A loader on a real warehouse and a real spool, put together as the daemon's is."""

    engine: Engine
    patience: Patience
    folder: Path
    limit: int = 2**30
    batches: list[list[Look]] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    tries: int = 0
    owes: bool = False

    def __post_init__(self) -> None:
        self.spool = Spool(self.folder, limit=self.limit, to_wire=wire_task, from_wire=import_task)
        self.loader = Loader(
            store=self._store,
            reach=lambda: schema.require_current(self.engine),
            repair=self._repair,
            give_up=self._give_up,
            spool=self.spool,
            told=lambda tally, _: self.tallies.append(tally),
            owes=lambda: self.owes,
        )

    def _store(self, looks: Sequence[Look]) -> Tally:
        tally = record(self.engine, looks)
        self.batches.append(list(looks))
        self.owes = False
        return tally

    def _repair(self) -> None:
        self.tries += 1

    def _give_up(self) -> None:
        self.patience.seconds = 0.2

    @property
    def waiting(self) -> list[Look]:
        """What waits on disk, as the next process would find it."""
        return [spooled.look for spooled in self.spool.waiting(10_000)]

    def stored(self, target: Target = TARGET) -> int:
        """How many scans of a target are stored."""
        return len(
            rows(
                self.engine,
                "SELECT FROM vm_import.scans JOIN vm_import.targets USING (target_id)"
                " WHERE account_id = :account_id AND region = :region",
                account_id=target.account_id,
                region=target.region,
            )
        )

    def has_stored(self, number: int, target: Target = TARGET) -> None:
        """Wait until so many scans of a target are stored."""
        eventually(lambda: self.stored(target) >= number)
        assert self.stored(target) == number


@pytest.fixture
def make_stand(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Stand]]:
    """Make stands, one spool folder and one warehouse for all of them; each is ended with the test."""
    stands: list[Stand] = []

    def make(*, limit: int = 2**30) -> Stand:
        patience = Patience(5)
        engine = make_engine(connect_to_url(database_url, patience))
        stands.append(Stand(engine, patience, tmp_path / "data" / "spool", limit=limit))
        stands[-1].loader.start()
        return stands[-1]

    yield make
    for stand in stands:
        stand.loader.close(5)
        stand.engine.dispose()


@pytest.fixture
def stand(make_stand: Callable[..., Stand]) -> Stand:
    """A loader that has begun."""
    return make_stand()


def failed(minutes: float, target: Target = TARGET) -> Failure:
    """Return a look that failed."""
    return Failure(target.account_id, target.region, at(minutes), "AuthFailure", "no")


def refuse(engine: Engine, *targets: Target) -> None:
    """Let the database choke on every scan of these targets."""
    with engine.begin() as connection:
        connection.execute(
            text(f"""
            CREATE OR REPLACE FUNCTION vm_import.choke() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF EXISTS (SELECT FROM vm_import.targets t WHERE t.target_id = NEW.target_id
                    AND t.account_id || ' ' || t.region IN ({
                ", ".join(f"'{target.account_id} {target.region}'" for target in targets) or "''"
            }))
                THEN RAISE 'the index is corrupt' USING ERRCODE = 'XX002'; END IF;
                RETURN NEW;
            END $$""")
        )
        connection.execute(
            text(
                "CREATE OR REPLACE TRIGGER choke BEFORE INSERT ON vm_import.scans"
                " FOR EACH ROW EXECUTE FUNCTION vm_import.choke()"
            )
        )


# With the database


def test_looks_are_stored_in_the_order_in_which_they_come(stand: Stand) -> None:
    """Scans and failures alike; nothing touches the disk."""
    looks: list[Look] = [numbered(0, {"a": 1}), failed(1), numbered(2, {"a": 2}), numbered(3, {"a": 3})]
    for look in looks:
        stand.loader.put([look])
    stand.has_stored(3)
    eventually(lambda: [look for batch in stand.batches for look in batch] == looks)
    assert (stand.spool.files, stand.loader.trouble, stand.loader.blocked) == (0, None, False)
    assert sum(tally.scans for tally in stand.tallies) == 3


def test_what_is_owed_is_stored_without_any_look(stand: Stand) -> None:
    """Once."""
    stand.owes = True
    eventually(lambda: not stand.owes)
    stand.loader.put([scan(1)])
    stand.has_stored(1)
    assert stand.batches == [[], [scan(1)]]


def test_closing_stores_what_is_left(stand: Stand) -> None:
    """While the database answers, within the patience."""
    stand.loader.put(numbered(minute, {"a": minute}) for minute in range(50))
    stand.loader.close(10)
    assert (stand.stored(), stand.spool.files) == (50, 0)


def test_what_waited_from_before_is_stored(stand: Stand, make_stand: Callable[..., Stand]) -> None:
    """A process that ended left it; more than fits into one batch, the oldest first."""
    stand.loader.close(5)
    looks = [scan(minute, task("a", Progress=str(minute))) for minute in range(250)]
    stand.spool.append(reversed(looks))
    after = make_stand()
    after.has_stored(250)
    assert [look for batch in after.batches for look in batch] == looks
    eventually(lambda: not after.spool.files)


# Without the database


def test_nothing_is_lost_while_the_database_is_away(stand: Stand, away: Away) -> None:
    """It is said, looks wait on disk, and they are stored when it is back."""
    stand.loader.put([numbered(0, {"a": 0})])
    stand.has_stored(1)
    with away():
        stand.loader.put([numbered(1, {"a": 1}), failed(2)])
        eventually(lambda: stand.spool.files == 2)
        assert stand.loader.trouble
        stand.loader.put([numbered(3, {"a": 3})])
        eventually(lambda: stand.spool.files == 3)
        assert not stand.loader.blocked
    stand.has_stored(3)
    eventually(lambda: not stand.spool.files and stand.loader.trouble is None)
    assert [row.failures for row in rows(stand.engine, "SELECT failures FROM vm_import.outages")] == [1]


def test_new_looks_are_stored_at_once_and_old_ones_after_them(stand: Stand, away: Away) -> None:
    """What is current is what people look at; history does not mind the order."""
    with away():
        stand.loader.put([numbered(0, {"a": 0})])
        eventually(lambda: stand.spool.files)
        old = [scan(minute) for minute in range(1, 450)]
        stand.spool.append(old)
    eventually(lambda: stand.batches)
    stand.loader.put([numbered(1000, {"a": 5})])
    stand.has_stored(451)
    instants = [[look.observed_at for look in batch if isinstance(look, Scan)] for batch in stand.batches]
    new = next(number for number, batch in enumerate(instants) if at(1000) in batch)
    assert instants[new] == [at(1000)]
    assert new < len(instants) - 1
    assert rows(stand.engine, "SELECT progress FROM vm_import.current_tasks") == [("5",)]


def test_the_trouble_is_said_once(stand: Stand, away: Away) -> None:
    """And once that it is over; not at every try."""
    with capture_logs() as logs:
        with away():
            stand.loader.put([numbered(0, {"a": 0})])
            eventually(lambda: stand.spool.files == 1)
            stand.loader.put([numbered(1, {"a": 1})])
            eventually(lambda: stand.spool.files == 2)
            tried = stand.tries
            eventually(lambda: stand.tries > tried + 1)
            stand.loader.put([numbered(2, {"a": 2})])
            eventually(lambda: stand.spool.files == 3)
        stand.has_stored(3)
        eventually(lambda: not stand.spool.files)
    said = [log["event"] for log in logs if log["log_level"] != "debug"]
    assert [event for event in said if "away" in event] == [
        "the database is away: what is seen waits on disk"
    ]
    assert said[-2:] == ["the database is back", "nothing waits on disk any more"]


# What the database chokes on


def test_a_look_that_the_database_chokes_on_does_not_hold_up_others(stand: Stand) -> None:
    """It waits on disk and is named; those before and behind it in its batch are stored."""
    refuse(stand.engine, OTHER)
    looks = [scan(0), scan(0, target=OTHER), scan(1), scan(1, target=OTHER), scan(2)]
    with capture_logs() as logs:
        stand.loader.put(looks)
        stand.has_stored(3)
        eventually(lambda: stand.spool.files == 2)
    assert stand.waiting == [looks[1], looks[3]]
    named = [log["look"] for log in logs if log["event"].startswith("look cannot be stored")]
    assert str(OTHER) in named[0]
    assert stand.loader.trouble is None


def test_a_look_that_nobody_foresaw_does_not_hold_up_others(stand: Stand) -> None:
    """Whatever is raised for it: here text that the driver cannot encode."""
    odd = Failure(OTHER.account_id, OTHER.region, at(0), "Odd", "bad \ud800 text")
    stand.spool.append([odd, scan(1)])
    stand.has_stored(1)
    eventually(lambda: stand.waiting == [odd])
    stand.loader.put([scan(2)])
    stand.has_stored(2)
    assert stand.loader.trouble is None


def test_many_looks_that_choke_do_not_hold_up_what_waits_behind_them(stand: Stand) -> None:
    """More of one target than fit into a batch, and older than all others; new ones are stored as ever."""
    refuse(stand.engine, OTHER)
    choking = [scan(minute, target=OTHER) for minute in range(210)]
    stand.spool.append([*choking, *(scan(minute) for minute in range(1000, 1010))])
    stand.has_stored(10)
    stand.loader.put([scan(2000)])
    stand.has_stored(11)
    eventually(lambda: stand.waiting == choking)
    assert stand.loader.trouble is None


def test_what_choked_is_stored_when_the_database_is_mended(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again by itself."""
    monkeypatch.setattr("collector.loader._PUT_OFF", 0.1)  # a minute, which is long for a test
    refuse(stand.engine, OTHER)
    stand.loader.put([scan(0, target=OTHER)])
    eventually(lambda: stand.spool.files)
    refuse(stand.engine)
    stand.has_stored(1, OTHER)
    eventually(lambda: not stand.spool.files)


def test_a_database_that_takes_nothing_at_all_is_away(stand: Stand) -> None:
    """Though it answers, as one whose disk is full does: looks are not tried one by one for ever."""
    targets = [Target(f"{number:012}", "eu-west-1") for number in range(20)]
    refuse(stand.engine, *targets)
    with capture_logs() as logs:
        stand.loader.put([scan(0, target=target) for target in targets])
        eventually(lambda: stand.spool.files == 20)
    assert "the index is corrupt" in str(stand.loader.trouble)
    assert sum(log["event"].startswith("look cannot be stored") for log in logs) == 3
    refuse(stand.engine)
    eventually(lambda: stand.spool.files <= 3)


# Neither database nor disk


@contextmanager
def no_disk(folder: Path) -> Iterator[None]:
    """Let a spool's folder be none for a while, which stops root too."""
    kept = folder.rename(folder.with_name("kept"))
    folder.touch()
    yield
    folder.unlink()
    kept.rename(folder)


def test_without_database_and_disk_looks_stay_in_memory(stand: Stand, away: Away) -> None:
    """And no more may be looked at; when the disk takes them they wait there, whatever they were."""
    looks: list[Look] = [numbered(0, {"a": 0}), failed(1), numbered(2, {"a": 2})]
    with away():
        with no_disk(stand.folder), capture_logs() as logs:
            for look in looks:
                stand.loader.put([look])
            eventually(lambda: stand.loader.blocked)
            assert [log["event"] for log in logs if log["event"].startswith("polling stops")]
        eventually(lambda: not stand.loader.blocked)
        assert stand.waiting == looks
    stand.has_stored(2)


def test_a_database_that_comes_back_before_the_disk_is_enough(stand: Stand, away: Away) -> None:
    """What stayed in memory is stored, and looks may begin again."""
    with no_disk(stand.folder):
        with away():
            stand.loader.put([numbered(0, {"a": 0}), numbered(1, {"a": 1})])
            eventually(lambda: stand.loader.blocked)
        stand.has_stored(2)
        eventually(lambda: not stand.loader.blocked)


def test_a_full_spool_stops_looking_and_loses_nothing(
    stand: Stand, make_stand: Callable[..., Stand], away: Away
) -> None:
    """Also what was in flight when its limit was reached; room is made by storing."""
    stand.loader.close(5)
    small = make_stand(limit=3 * 4096)
    with away():
        small.loader.put(numbered(minute, {"a": minute}) for minute in range(5))
        eventually(lambda: small.loader.blocked)
        assert len(small.waiting) == 5
    small.has_stored(5)
    eventually(lambda: not small.loader.blocked)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a spool on a small file system of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or unmount is None:
        pytest.skip("a small file system of its own needs root")
    options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount a file system")
    yield folder
    subprocess.run([unmount, str(folder)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path, make_stand: Callable[..., Stand], away: Away) -> None:
    """What does not fit is kept in memory until there is room."""
    stand = make_stand()
    ballast = small_disk / "ballast"
    with away():
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        stand.loader.put([numbered(0, {"a": 0}), numbered(1, {"a": 1})])
        eventually(lambda: stand.loader.blocked)
        ballast.unlink()
        eventually(lambda: stand.spool.files == 2)
        assert not stand.loader.blocked
    stand.has_stored(2)


# The end


def test_closing_while_the_database_is_away_leaves_everything_on_disk(stand: Stand, away: Away) -> None:
    """Within the patience, and no thread stays."""
    looks = [numbered(minute, {"a": minute}) for minute in range(20)]
    with away():
        stand.loader.put(looks)
        began = monotonic()
        stand.loader.close(3)
        assert monotonic() - began < 5
        assert stand.waiting == looks
    assert not any(thread.name == "loader" for thread in threading.enumerate())


def test_closing_while_a_table_is_locked_leaves_everything_on_disk(stand: Stand, database_url: str) -> None:
    """Both the batch in hand and what came behind it."""
    looks: list[Look] = [numbered(0, {"a": 0}), failed(1), numbered(2, {"a": 2})]
    stand.patience.seconds = 60
    with locked(database_url):
        stand.loader.put(looks[:1])
        eventually(lambda: stand.loader.busy_for)
        stand.loader.put(looks[1:])
        began = monotonic()
        stand.loader.close(2)
        assert monotonic() - began < 5
        assert stand.waiting == looks


def test_closing_while_the_server_hangs_leaves_everything_on_disk(
    public_folder: Path, tmp_path: Path
) -> None:
    """A server that was stopped neither answers nor refuses."""
    folder = public_folder / "hanging"
    looks = [numbered(0, {"a": 0}), numbered(1, {"a": 1})]
    with EmbeddedPostgres(folder) as server:
        patience = Patience(60)
        engine = make_engine(connect_to_parameters(server.conninfo, patience))
        schema.upgrade(engine)
        stand = Stand(engine, patience, tmp_path / "spool")
        stand.loader.start()
        with frozen(folder):
            stand.loader.put(looks[:1])
            eventually(lambda: stand.loader.busy_for)
            stand.loader.put(looks[1:])
            began = monotonic()
            stand.loader.close(2)
            assert monotonic() - began < 5
            assert stand.waiting == looks
        engine.dispose()


def test_a_rescue_takes_no_database(stand: Stand, database_url: str) -> None:
    """What is in hand goes to disk at once; what is stored after all is known twice, and stored once."""
    with locked(database_url):
        stand.loader.put([numbered(0, {"a": 0})])
        eventually(lambda: stand.loader.busy_for)
        stand.loader.put([numbered(1, {"a": 1})])
        stand.loader.rescue()
        assert stand.waiting == [numbered(0, {"a": 0}), numbered(1, {"a": 1})]
    stand.has_stored(2)
    eventually(lambda: not stand.spool.files)
    assert stand.stored() == 2
