"""Which accounts and targets there are, and whose credentials sign what: real boto3 over real sockets."""

import gc
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic, sleep
from typing import Any, NamedTuple

import pytest

from collector import logs
from collector.aws.accounts import Accounts, Organization, Role
from collector.aws.clients import AwsUnavailableError, Clients
from collector.aws.discovery import Discovery
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.errors import UsageError
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.simulator.faults import Denied, ErrorAnswer, HtmlPage, Latency
from tests.simulation import ACCOUNT, OTHER_REGION, REGION, asking_of, eventually, make_simulator, wire

OTHER, THIRD = "444455556666", "777788889999"
EXPIRED_KEY = f"ASIA{ACCOUNT}FFFF"
"""A role's key that the simulator never gave out counts as one that has expired."""


@pytest.fixture(scope="module")
def clients(port: int) -> Iterator[Clients]:
    """Clients that are led to the simulators."""
    assert port
    clients = Clients(connections=64, patience=timedelta(seconds=10))
    yield clients
    clients.close()


MakeAccounts = Callable[..., Accounts]


@pytest.fixture
def make_accounts(clients: Clients, simulator: Simulator) -> MakeAccounts:
    """Make accounts as they are configured."""
    assert simulator
    return lambda *roles, **options: Accounts(clients, roles=roles, **options)


def role(account_id: str, *regions: str, external_id: str | None = None) -> Role:
    """Return a role in an account."""
    return Role(f"arn:aws:iam::{account_id}:role/collector", external_id, regions)


def organization(*exclude: str) -> Organization:
    """Return the organization, without some accounts."""
    return Organization("collector", frozenset(exclude))


def ids(accounts: Accounts) -> list[str]:
    """Return the ids of the accounts that there are."""
    return [account.account_id for account in accounts.current()]


def discovery_of(
    accounts: Accounts, *regions: str, exclude: Sequence[str] = (), known: Collection[Target] = ()
) -> Discovery:
    """Return what finds the targets in all Regions, or in those that are named."""
    return Discovery(accounts, regions=regions or ["all"], exclude=exclude, known=known, now=utc_now)


def lister_of(clients: Clients, accounts: Accounts, *, limit: float = 60) -> Lister:
    """Return what looks at the accounts that there are."""
    now = never_the_same_twice(utc_now)
    asking = asking_of(accounts, now=now, limit=timedelta(seconds=limit))
    return Lister(clients, asking, now=now, missing=lambda _: ())


def targets(*account_ids: str, regions: Sequence[str] = (REGION, OTHER_REGION)) -> tuple[Target, ...]:
    """Return the targets of accounts in Regions."""
    return tuple(Target(account_id, region) for account_id in account_ids for region in regions)


def code_of(result: Scan | Failure) -> str:
    """Return a failure's code, or nothing."""
    return result.code if isinstance(result, Failure) else ""


# Which accounts there are


def test_the_own_account(make_accounts: MakeAccounts) -> None:
    """Without configuration it is the credentials' own."""
    accounts = make_accounts()

    assert ids(accounts) == [ACCOUNT]
    assert accounts.own_account() == (ACCOUNT, "aws")
    assert accounts.current()[0].role_arn is None


def test_configured_accounts_replace_the_own(make_accounts: MakeAccounts, simulator: Simulator) -> None:
    """Nobody is asked who they are."""
    assert ids(make_accounts(role(THIRD), role(OTHER))) == [OTHER, THIRD]
    assert simulator.count() == 0


def test_an_entry_without_a_role_is_the_own_account(make_accounts: MakeAccounts) -> None:
    """With Regions of its own, if it has any."""
    own, other = make_accounts(Role(regions=("eu-*",)), role(OTHER)).current()

    assert (own.account_id, own.role_arn, own.regions) == (ACCOUNT, None, ("eu-*",))
    assert (other.account_id, other.role_arn) == (OTHER, f"arn:aws:iam::{OTHER}:role/collector")


def test_an_account_by_a_role_and_as_the_own_is_a_mistake(make_accounts: MakeAccounts) -> None:
    """Which of the two was meant, nobody can say."""
    with pytest.raises(UsageError, match=f"named twice: {ACCOUNT}"):
        make_accounts(Role(), role(ACCOUNT)).current()


def test_an_external_id_is_given(make_accounts: MakeAccounts, simulator: Simulator, clients: Clients) -> None:
    """To the account that asks for it; without it that one is denied."""
    simulator.external_ids[OTHER] = "secret"

    lister = lister_of(clients, make_accounts(role(OTHER, external_id="secret")))
    assert isinstance(lister.look(Target(OTHER, REGION)), Scan)
    lister = lister_of(clients, make_accounts(role(OTHER)))
    assert code_of(lister.look(Target(OTHER, REGION))) == "AccessDenied"


def test_an_organization(make_accounts: MakeAccounts, simulator: Simulator) -> None:
    """Over all pages; who left, is about to, or is excluded stays out; the own account needs no role."""
    members = {f"{number:012}": "ACTIVE" for number in range(1, 45)}
    simulator.organization = {**members, ACCOUNT: "ACTIVE", OTHER: "SUSPENDED", THIRD: "PENDING_CLOSURE"}

    accounts = make_accounts(organization=organization("000000000007"))

    assert ids(accounts) == sorted({*members, ACCOUNT} - {"000000000007"})
    assert simulator.count(action="ListAccounts") == 3
    without_role = [account.account_id for account in accounts.current() if account.role_arn is None]
    assert without_role == [ACCOUNT]


def test_members_come_and_go(make_accounts: MakeAccounts, simulator: Simulator) -> None:
    """Those that stay keep their credentials."""
    simulator.organization = {OTHER: "ACTIVE"}
    accounts = make_accounts(organization=organization())
    (before,) = accounts.current()

    simulator.organization = {OTHER: "ACTIVE", THIRD: "ACTIVE"}
    again, _ = accounts.current()
    assert again.credentials is before.credentials
    simulator.organization = {THIRD: "ACTIVE"}
    assert ids(accounts) == [THIRD]


def test_only_the_named_accounts(make_accounts: MakeAccounts) -> None:
    """One that is not there is a mistake, which names those that are."""
    roles = role(OTHER), role(THIRD)
    assert ids(make_accounts(*roles, only=[THIRD])) == [THIRD]

    with pytest.raises(UsageError, match=f"--account: {ACCOUNT} is not among .*: {OTHER}, {THIRD}$"):
        make_accounts(*roles, only=[ACCOUNT]).current()


@pytest.mark.parametrize("fault", [Denied("AccessDenied"), HtmlPage(), HtmlPage(well_formed=False)])
def test_an_own_account_that_nobody_tells(simulator: Simulator, fault: Any) -> None:
    """The cause's code is told, and the action."""
    simulator.faults.add(fault, action="GetCallerIdentity")
    clients = Clients(connections=1, patience=timedelta(seconds=1))

    with pytest.raises(AwsUnavailableError, match="sts:GetCallerIdentity in eu-west-1") as raised:
        Accounts(clients).current()

    clients.close()
    assert raised.value.code == ("AccessDenied" if isinstance(fault, Denied) else "UnusableAnswer")


@pytest.mark.parametrize("answer", [{}, {"Regions": [{}]}, {"Regions": None}], ids=repr)
def test_an_answer_that_lacks_what_it_is_asked_for(clients: Clients, answer: dict[str, Any]) -> None:
    """It is no answer of AWS's, and a failure of that account like any other."""
    with pytest.raises(AwsUnavailableError, match=r"^which Regions: UnusableAnswer: ") as raised:
        clients.ask(lambda: [region["RegionName"] for region in answer["Regions"]], "which Regions")
    assert raised.value.code == "UnusableAnswer"


# Which targets there are


def test_all_enabled_regions_of_each_account(clients: Clients, port: int) -> None:
    """Each has its own."""
    enabled = {OTHER: [REGION, "me-south-1"], THIRD: [REGION]}
    with Simulator(regions=enabled, port=port):
        discovery = discovery_of(Accounts(clients, roles=[role(OTHER), role(THIRD)]))

        assert discovery.discover().targets == (
            *targets(OTHER, regions=[REGION, "me-south-1"]),
            Target(THIRD, REGION),
        )


def test_regions_that_are_enabled_and_disabled_later(clients: Clients, port: int) -> None:
    """They come and go with the next discovery."""
    discovery = discovery_of(Accounts(clients))
    for regions in ([REGION], [REGION, "me-south-1"], [OTHER_REGION, REGION]):
        with make_simulator(*regions, port=port):
            found = discovery.discover()
            assert (found.targets, found.failures) == (targets(ACCOUNT, regions=sorted(regions)), ())


def test_globs_and_exclusions(make_accounts: MakeAccounts) -> None:
    """An account's own patterns stand for those of the configuration; exclusions hold for all."""
    accounts = make_accounts(role(OTHER, "us-*"), role(THIRD), role(ACCOUNT, "all"))

    assert discovery_of(accounts, "eu-*").discover().targets == (
        *targets(ACCOUNT),
        Target(OTHER, OTHER_REGION),
        Target(THIRD, REGION),
    )
    assert discovery_of(accounts, "eu-*", exclude=["us-*"]).discover().targets == targets(
        ACCOUNT, THIRD, regions=[REGION]
    )


def test_named_regions_are_taken_as_they_are(make_accounts: MakeAccounts, simulator: Simulator) -> None:
    """Nobody is asked, so no permission is needed for it."""
    discovery = discovery_of(make_accounts(role(OTHER)), "sa-east-1", REGION)

    found = discovery.discover()
    assert (found.targets, found.failures) == (targets(OTHER, regions=[REGION, "sa-east-1"]), ())
    assert simulator.count() == 0


def test_nothing_left_to_look_at(make_accounts: MakeAccounts) -> None:
    """What leads to nothing is named."""
    with pytest.raises(UsageError, match=r"account 444455556666 is among eu-\* without eu-west-1"):
        discovery_of(make_accounts(role(OTHER)), "eu-*", exclude=["eu-west-1"]).discover()


# "Could not ask" is never "there is none"


@pytest.mark.parametrize(
    ("action", "code"), [("DescribeRegions", "UnauthorizedOperation"), ("AssumeRole", "AccessDenied")]
)
def test_an_account_that_cannot_be_asked_keeps_its_regions(
    make_accounts: MakeAccounts, simulator: Simulator, action: str, code: str
) -> None:
    """The failure has AWS's code, and the others go on."""
    simulator.role_lifetime = timedelta(seconds=60)  # within the time in which they are refreshed
    discovery = discovery_of(make_accounts(role(OTHER), role(THIRD)))
    before = discovery.discover()
    simulator.faults.add(Denied(code), action=action, account=OTHER)

    found = discovery.discover()

    assert found.targets == before.targets == targets(OTHER, THIRD)
    ((account_id, region, _, told, message),) = [
        (one.account_id, one.region, one.failed_at, one.code, one.message) for one in found.failures
    ]
    assert (account_id, region, told) == (OTHER, None, code)
    assert f"ec2:DescribeRegions in {REGION}" in message


def test_an_account_that_never_answered_has_the_regions_of_earlier_times(
    make_accounts: MakeAccounts, simulator: Simulator
) -> None:
    """As the warehouse knows them, and as far as they are still wanted."""
    simulator.faults.add(Denied(), action="DescribeRegions")
    discovery = discovery_of(make_accounts(role(OTHER)), "eu-*", known=targets(OTHER, THIRD))

    found = discovery.discover()

    assert (found.targets, len(found.failures)) == ((Target(OTHER, REGION),), 1)


def test_an_organization_that_cannot_be_asked_keeps_its_accounts(
    make_accounts: MakeAccounts, simulator: Simulator
) -> None:
    """The failure is the own account's."""
    simulator.organization = {OTHER: "ACTIVE", THIRD: "ACTIVE"}
    discovery = discovery_of(make_accounts(organization=organization()))
    discovery.discover()
    simulator.faults.add(Denied("AccessDeniedException"), action="ListAccounts")

    found = discovery.discover()

    assert found.targets == targets(OTHER, THIRD)
    assert [(one.account_id, one.code) for one in found.failures] == [(ACCOUNT, "AccessDeniedException")]


def test_an_organization_that_never_answered_has_the_accounts_of_earlier_times(
    make_accounts: MakeAccounts, simulator: Simulator
) -> None:
    """As the warehouse knows them, without those that are excluded now; without any it is an error."""
    simulator.faults.add(Denied("AccessDeniedException"), action="ListAccounts")
    accounts = make_accounts(organization=organization(THIRD))

    found = discovery_of(accounts, known=targets(ACCOUNT, OTHER, THIRD)).discover()

    assert (found.targets, len(found.failures)) == (targets(ACCOUNT, OTHER), 1)
    with pytest.raises(AwsUnavailableError, match="organizations:ListAccounts"):
        discovery_of(accounts).discover()


# Whose credentials sign


def test_credentials_of_a_role_are_refreshed_in_time(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients
) -> None:
    """In clients that live on."""
    simulator.role_lifetime = timedelta(seconds=1)
    lister = lister_of(clients, make_accounts(role(OTHER)))
    assert isinstance(lister.look(Target(OTHER, REGION)), Scan)

    sleep(1.1)  # the only way to let them expire

    assert isinstance(lister.look(Target(OTHER, REGION)), Scan)


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired"])
def test_credentials_that_are_no_longer_taken_are_renewed(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients, code: str
) -> None:
    """One look fails, the next has new ones."""
    simulator.expired_code = code
    lister = lister_of(clients, make_accounts(role(OTHER), renewal_pause=0), limit=1)
    lister.look(Target(OTHER, REGION))
    simulator.revoke(OTHER)

    assert code_of(lister.look(Target(OTHER, REGION))) == code
    assert isinstance(lister.look(Target(OTHER, REGION)), Scan)
    assert simulator.count(action="AssumeRole") == 2


def test_credentials_that_are_refused_for_good_are_seldom_renewed(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients
) -> None:
    """Not with every look."""
    lister = lister_of(clients, make_accounts(role(OTHER)))
    simulator.faults.add(ErrorAnswer("AuthFailure"))

    codes = {code_of(lister.look(Target(OTHER, REGION))) for _ in range(5)}

    assert codes == {"AuthFailure"}
    assert simulator.count(action="AssumeRole") == 1


def test_own_credentials_are_read_again(make_accounts: MakeAccounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """After AWS has refused them, as somebody may have put better ones there."""
    accounts = make_accounts(renewal_pause=0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", EXPIRED_KEY)
    with pytest.raises(AwsUnavailableError, match="ExpiredToken"):
        accounts.current()

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIABETTER")

    assert ids(accounts) == [ACCOUNT]


def test_own_credentials_of_another_account_are_not_taken(
    clients: Clients, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that one lists would be taken for the end of all tasks."""
    with Simulator(accounts={"AKIAOTHER": OTHER}, regions=[REGION], port=port) as simulator:
        lister = lister_of(clients, Accounts(clients, renewal_pause=0))
        with simulator.faults.add(ErrorAnswer("InvalidClientTokenId")):
            assert code_of(lister.look(Target(ACCOUNT, REGION))) == "InvalidClientTokenId"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")

        result = lister.look(Target(ACCOUNT, REGION))

        assert isinstance(result, Failure)
        assert (result.code, OTHER in result.message) == ("AccountChanged", True)
        assert simulator.count(account=OTHER, action="DescribeImportImageTasks") == 0


def test_without_credentials(make_accounts: MakeAccounts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what is missing."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    with pytest.raises(AwsUnavailableError, match="no AWS credentials were found") as raised:
        make_accounts().current()

    assert raised.value.code == "NoCredentials"


def test_an_assumed_role_that_a_proxy_answers_for(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients
) -> None:
    """Its page is no credentials."""
    simulator.faults.add(HtmlPage(), action="AssumeRole")

    result = lister_of(clients, make_accounts(role(OTHER)), limit=0.5).look(Target(OTHER, REGION))

    assert code_of(result) == "UnusableAnswer"


# Many at once


def looks_at_once(lister: Lister, wanted: Sequence[Target]) -> list[Scan | Failure]:
    """Look at targets in 64 threads."""
    with ThreadPoolExecutor(64) as pool:
        return list(pool.map(lister.look, wanted))


@pytest.mark.parametrize("denied", [False, True])
def test_a_role_is_assumed_once_for_all_regions(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients, *, denied: bool
) -> None:
    """Also when it is denied, and each look is told so."""
    if denied:
        simulator.faults.add(Denied("AccessDenied"), action="AssumeRole")
    lister = lister_of(clients, make_accounts(role(OTHER)))

    results = looks_at_once(lister, targets(OTHER) * 18)

    assert {code_of(result) for result in results} == {"AccessDenied" if denied else ""}
    assert simulator.count(action="AssumeRole") == 1


def test_a_look_waits_for_anothers_credentials_within_its_own_deadline(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients
) -> None:
    """However long the other one has."""
    simulator.faults.add(Latency(1.5), action="AssumeRole", times=1)
    accounts = make_accounts(role(OTHER))
    patient, hasty = lister_of(clients, accounts), lister_of(clients, accounts, limit=0.2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(patient.look, Target(OTHER, REGION))
        eventually(lambda: simulator.count(action="AssumeRole"))

        began = monotonic()
        assert code_of(hasty.look(Target(OTHER, OTHER_REGION))) == "DeadlineExceeded"
        assert monotonic() - began < 1
        assert isinstance(first.result(), Scan)


class Crowd(NamedTuple):
    """Very many looks at once: what was seen, what was asked for, and by how many clients."""

    results: dict[Target, Scan | Failure]
    simulator: Simulator
    clients: int


CROWD_ACCOUNTS = [f"{number:012}" for number in range(1, 101)]
CROWD_REGIONS = [f"xx-test-{number}" for number in range(10)]


@pytest.fixture(scope="module")
def crowd(port: int) -> Crowd:
    """Look at 100 accounts in 10 Regions in 64 threads; each target has one task, which names it."""
    wanted = targets(*CROWD_ACCOUNTS, regions=CROWD_REGIONS)
    simulator = Simulator(Fleet(SimulatedClock(utc_now())), regions=CROWD_REGIONS, port=port)
    for target in wanted:
        simulator.fleet.put(target.account_id, target.region, wire(f"{target.account_id}-{target.region}"))
    with simulator:
        clients = Clients(connections=64, patience=timedelta(seconds=20))
        before = number_of_clients()
        lister = lister_of(clients, Accounts(clients, roles=[role(one) for one in CROWD_ACCOUNTS]))
        results = dict(zip(wanted, looks_at_once(lister, wanted), strict=True))
        made = number_of_clients() - before
        clients.close()
    return Crowd(results, simulator, made)


def number_of_clients() -> int:
    """Count the EC2 clients that there are in this process."""
    return sum(type(thing).__name__ == "EC2" for thing in gc.get_objects())


def test_no_request_is_signed_with_another_accounts_credentials(crowd: Crowd) -> None:
    """Each target shows its own task, and was asked for once."""
    seen = {
        target: [task.import_task_id for task in result.tasks] if isinstance(result, Scan) else result.code
        for target, result in crowd.results.items()
    }
    assert seen == {target: [f"import-ami-{target.account_id}-{target.region}"] for target in crowd.results}
    asked = {
        key[1:]: n for key, n in crowd.simulator.requests.items() if key[0] == "DescribeImportImageTasks"
    }
    assert asked == {(target.account_id, target.region): 1 for target in crowd.results}


def test_each_role_is_assumed_once(crowd: Crowd) -> None:
    """By whichever look comes first."""
    assumed = {key[1]: n for key, n in crowd.simulator.requests.items() if key[0] == "AssumeRole"}
    assert assumed == dict.fromkeys(CROWD_ACCOUNTS, 1)


def test_there_is_one_client(crowd: Crowd) -> None:
    """However many accounts and Regions there are."""
    assert crowd.clients == 1


# Logs


def test_a_denied_role_leaves_no_traceback_in_the_log(
    make_accounts: MakeAccounts, simulator: Simulator, clients: Clients, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure says it all."""
    simulator.faults.add(Denied("AccessDenied"), action="AssumeRole")
    root, level = logging.getLogger(), logging.getLogger("botocore.credentials").level
    handlers, root_level = root.handlers, root.level
    try:
        logs.configure("json", verbose=True)
        lister_of(clients, make_accounts(role(OTHER))).look(Target(OTHER, REGION))
    finally:
        root.handlers = handlers
        root.setLevel(root_level)
        logging.getLogger("botocore.credentials").setLevel(level)

    assert capsys.readouterr().err == ""
