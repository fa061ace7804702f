"""``collector check``: tries what ``collector run`` needs, one line each, with the mend where it fails."""

import errno
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from rich.console import Console
from rich.text import Text

from collector.aws.accounts import NO_LONGER_TAKEN, Account
from collector.aws.clients import AwsUnavailableError, Clients
from collector.aws.discovery import Discovery
from collector.aws.failures import UnusableAnswerError
from collector.aws.probes import Probes, Refusal
from collector.clock import utc_now
from collector.commands.composition import spool_folder, spool_of, warehouse_of
from collector.commands.tables import in_one_line
from collector.commands.wiring import accounts_of
from collector.config import Settings
from collector.domain import Failure
from collector.errors import EmbeddedPostgresError, SpoolError, UsageError, WarehouseError
from collector.polling import UNANSWERED
from collector.redaction import redacted
from collector.warehouse import schema
from collector.warehouse.access import Warehouse
from collector.warehouse.engine import server_of, translated_errors
from collector.warehouse.probes import GROUPS, keeps_sessions, missing_groups, missing_rights
from collector.web.listening import bind, place

_AT_ONCE = 16
"""Questions to AWS at the same time."""

_ANSWER = 10.0
"""Seconds that the database may take to answer."""

_SKEW_TO_WARN = timedelta(seconds=60)
_SKEW_REFUSED = timedelta(minutes=5)
"""AWS takes no signature that is older or newer than this."""


_Probe = Callable[[Account, str], Refusal | None]
_Answers = Mapping[str, Refusal | None]
"""What came of a probe in an account's Regions."""

_FORBIDDEN = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
_NO_ANSWER = UNANSWERED | {"ProxyConnection", "SSL", UnusableAnswerError.code}
_NETWORK = "see to the network, proxies (HTTPS_PROXY), endpoints (AWS_ENDPOINT_URL) and CA bundle"
_ENABLE = "enable the Region in this account, or exclude it (exclude_regions)"
_CONFIGURE = "environment, profile, SSO or instance role will do; AWS_PROFILE chooses a profile"
_MENDS = {
    "AuthFailure": _ENABLE,
    "AWSOrganizationsNotInUseException": "use the management account's credentials, or [[accounts]]",
    "NoCredentials": _CONFIGURE,
    "OptInRequired": _ENABLE,
    "PartialCredentials": _CONFIGURE,
    "SignatureDoesNotMatch": "the secret key or the clock is wrong",
}
_TRUST = (
    "the role must trust whose these credentials are (with this external_id, if any), and these must be"
    " allowed to assume it: `collector iam-policy --hub`"
)


class Verdict(StrEnum):
    """What came of a check."""

    WELL = "ok"
    NOTED = "info"
    DOUBTFUL = "warn"
    FAILED = "fail"


_COLOURS = {
    Verdict.WELL: "green",
    Verdict.NOTED: "cyan",
    Verdict.DOUBTFUL: "yellow",
    Verdict.FAILED: "bold red",
}


class _Report:
    """Prints a line for each check, and adds up what they mean together."""

    def __init__(self) -> None:
        self._console = Console()
        self._nothing_works = False
        self._accounts: dict[str, bool] = {}
        self._some_fail = False

    @property
    def exit_code(self) -> int:
        """0: all well. 1: nothing would work. 3: some targets or accounts fail, and the rest works."""
        if self._nothing_works or (self._accounts and not any(self._accounts.values())):
            return 1
        return 3 if self._some_fail else 0

    def well(self, subject: str, text: str) -> None:
        """Tell what is as it must be."""
        self._line(Verdict.WELL, subject, text)

    def note(self, subject: str, text: str) -> None:
        """Tell what may be as it is."""
        self._line(Verdict.NOTED, subject, text)

    def doubt(self, subject: str, text: str, mend: str) -> None:
        """Tell what works, but perhaps not always."""
        self._line(Verdict.DOUBTFUL, subject, f"{text}; {mend}")

    def fail(self, subject: str, text: str, mend: str = "", *, all_of_it: bool = True) -> None:
        """Tell what does not work; ``all_of_it``: nothing works then."""
        self._nothing_works |= all_of_it
        self._some_fail = True
        self._line(Verdict.FAILED, subject, f"{text.removesuffix('.')}; {mend}" if mend else text)

    def account(self, account_id: str, *, works: bool) -> None:
        """Say whether anything of an account can be looked at."""
        self._accounts[account_id] = works

    def _line(self, verdict: Verdict, subject: str, text: str) -> None:
        line = Text.assemble(
            (f"{verdict:4}", _COLOURS[verdict]), "  ", in_one_line(Text(redacted(f"{subject}: {text}")))
        )
        self._console.print(line, soft_wrap=True)


def check(settings: Settings, *, accounts: Sequence[str]) -> int:
    """Try everything, and return the exit code.

    Raises:
        UsageError: ``accounts`` names one that there is not, or a URL cannot be read.
    """
    report = _Report()
    _check_aws(settings, accounts, report)
    _check_warehouse(settings, report)
    _check_spool(settings, report)
    _check_listen(settings, report)
    return report.exit_code


# AWS


def _check_aws(settings: Settings, only: Sequence[str], report: _Report) -> None:
    try:
        clients = Clients(connections=settings.concurrency, patience=settings.target_deadline)
    except AwsUnavailableError as error:
        report.fail("credentials", str(error))
        return
    directory = accounts_of(settings, clients, only=only)
    probes = Probes(clients, directory)
    try:
        usable = _check_credentials(directory.own_arn, report)
        _check_clock(probes, report)
        if not usable:
            return
        if settings.organization:
            accounts = _check_organization(directory.current, settings.organization.role_name, report)
        else:
            accounts = directory.current()
        discovery = Discovery(
            directory, regions=settings.regions, exclude=settings.exclude_regions, now=utc_now
        )
        _check_accounts(accounts, discovery, probes, report)
    finally:
        clients.close()


def _check_credentials(own_arn: Callable[[], str], report: _Report) -> bool:
    try:
        arn = own_arn()
    except AwsUnavailableError as error:
        report.fail("credentials", str(error), _mend_of(error.code))
        return False
    report.well("credentials", f"{arn} of account {arn.split(':')[4]}")
    return True


def _check_clock(probes: Probes, report: _Report) -> None:
    skew = probes.clock_skew()
    if skew is None:
        report.note("clock", "no answer of AWS's tells the time")
        return
    seconds = round(abs(skew.total_seconds()))
    text = f"{seconds} s {'behind' if skew > timedelta(0) else 'ahead of'} AWS's"
    mend = "set it, and let NTP keep it: AWS refuses signatures that are 5 minutes off (AuthFailure)"
    if abs(skew) > _SKEW_REFUSED:
        report.fail("clock", text, mend)
    elif abs(skew) > _SKEW_TO_WARN:
        report.doubt("clock", text, mend)
    else:
        report.well("clock", text)


def _check_organization(
    current: Callable[[], list[Account]], role_name: str, report: _Report
) -> list[Account]:
    try:
        accounts = current()
    except AwsUnavailableError as error:
        report.fail("organization", str(error), _mend_of(error.code, hub=True))
        return []
    text = f"{_counted(len(accounts), 'account')} to look at, by the role {role_name}"
    if accounts:
        report.well("organization", text)
    else:
        report.fail("organization", text, "let exclude leave one")
    return accounts


def _check_accounts(
    accounts: Sequence[Account], discovery: Discovery, probes: Probes, report: _Report
) -> None:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="check") as pool:
        chosen: dict[str, list[str]] = {}
        refusals = pool.map(probes.credentials, accounts)
        reachable = [
            account
            for account, refusal in zip(accounts, refusals, strict=True)
            if _check_role(account, refusal, report)
        ]
        found = pool.map(lambda account: _regions_of(account, discovery, probes), reachable)
        for account, regions in zip(reachable, found, strict=True):
            chosen[account.account_id] = _check_regions(account, regions, discovery, report)
        targets = [(account, region) for account in reachable for region in chosen[account.account_id]]

        def ask(probe: _Probe, targets: Sequence[tuple[Account, str]]) -> Mapping[Account, _Answers]:
            answers = defaultdict[Account, dict[str, Refusal | None]](dict)
            refusals = pool.map(lambda target: probe(*target), targets)
            for (account, region), refusal in zip(targets, refusals, strict=True):
                answers[account][region] = refusal
            return answers

        tasks = ask(probes.describing_tasks, targets)
        allowed = [(account, region) for account, region in targets if tasks[account][region] is None]
        images = ask(probes.describing_images, allowed)
        events = ask(probes.looking_up_events, allowed)
        for account in reachable:
            _check_action(account, "ec2:DescribeImportImageTasks", tasks[account], report)
            _check_action(account, "ec2:DescribeImages", images[account], report, needed=False)
            _check_action(account, "cloudtrail:LookupEvents", events[account], report, needed=False)


def _check_role(account: Account, refusal: Refusal | None, report: _Report) -> bool:
    report.account(account.account_id, works=False)
    subject = f"account {account.account_id}"
    if refusal:
        mend = _TRUST if refusal.code == "AccessDenied" else _mend_of(refusal.code)
        report.fail(subject, f"no credentials: {refusal.code}: {refusal.message}", mend, all_of_it=False)
        return False
    report.well(
        subject, f"role {account.role_arn} can be assumed" if account.role_arn else "the credentials' own"
    )
    return True


def _regions_of(account: Account, discovery: Discovery, probes: Probes) -> list[str] | Refusal:
    if not discovery.names_regions(account) and (refusal := probes.describing_regions(account)):
        return refusal
    found = discovery.regions_of(account)
    return Refusal(found.code, found.message) if isinstance(found, Failure) else found


def _check_regions(
    account: Account, found: list[str] | Refusal, discovery: Discovery, report: _Report
) -> list[str]:
    """Return the Regions to look at."""
    subject = f"account {account.account_id}, Regions"
    if isinstance(found, Refusal):
        mend = f"{_mend_of(found.code)}, or name them in regions"
        report.fail(subject, f"ec2:DescribeRegions: {found.code}: {found.message}", mend, all_of_it=False)
        return []
    chosen = discovery.chosen(account, found)
    how = "named (ec2:DescribeRegions is not needed)" if discovery.names_regions(account) else "enabled"
    text = f"{len(found)} {how}, {len(chosen)} to look at"
    if chosen:
        report.well(subject, text)
    else:
        report.fail(subject, text, "let regions and exclude_regions leave one", all_of_it=False)
    return chosen


def _check_action(
    account: Account, action: str, answers: _Answers, report: _Report, *, needed: bool = True
) -> None:
    """Tell in which Regions an action is allowed, and, a line for each code, in which it is not."""
    subject = f"account {account.account_id}, {action}"
    refused: defaultdict[str, list[str]] = defaultdict(list)
    messages: dict[str, str] = {}
    for region, refusal in answers.items():
        if refusal:
            refused[refusal.code].append(region)
            messages.setdefault(refusal.code, refusal.message)
    for code, regions in sorted(refused.items()):
        text = f"{code} in {', '.join(regions)}: {messages[code]}"
        if needed:
            report.fail(subject, text, _mend_of(code), all_of_it=False)
        else:
            report.doubt(subject, text, f"only `collector backfill` needs it; {_mend_of(code)}")
    if allowed := len(answers) - sum(map(len, refused.values())):
        report.well(subject, f"allowed in {_counted(allowed, 'Region')}")
        if needed:
            report.account(account.account_id, works=True)


def _mend_of(code: str, *, hub: bool = False) -> str:
    """Say what to do about an error code of AWS's, or of ours where there was no answer."""
    if code in _FORBIDDEN:
        option = " --hub" if hub else ""
        return f"allow it: `collector iam-policy{option}` prints what it takes; a control policy may deny it"
    if code in _MENDS:
        return _MENDS[code]
    if code in NO_LONGER_TAKEN:
        return "renew the credentials"
    return _NETWORK if code in _NO_ANSWER else "try again; what AWS documents of the code says more"


# The database


def _check_warehouse(settings: Settings, report: _Report) -> None:
    try:
        with warehouse_of(settings) as warehouse:
            warehouse.patience.seconds = _ANSWER
            if _check_server(warehouse, report):
                _check_rights(warehouse, report)
                _check_schema(warehouse, report)
                _check_groups(warehouse, report)
                _check_sessions(warehouse, report)
    except (EmbeddedPostgresError, WarehouseError) as error:
        report.fail("database", str(error))


def _check_server(warehouse: Warehouse, report: _Report) -> bool:
    try:
        with translated_errors(), warehouse.engine.connect() as connection:
            found = server_of(connection)
    except WarehouseError as error:
        mend = "" if warehouse.embedded else "see to the server, database_url and its password"
        report.fail("database", str(error), mend)
        return False
    kind = "embedded " if warehouse.embedded else ""
    text = f"{kind}PostgreSQL {found.version}, database {found.database}, as role {found.role}"
    if found.fault:
        report.fail("database", text, found.fault)
        return False
    if found.read_only:
        report.fail("database", f"{text}, is read-only", "point database_url at the primary")
    else:
        report.well("database", text)
    return True


def _check_rights(warehouse: Warehouse, report: _Report) -> None:
    try:
        missing = missing_rights(warehouse.engine)
    except WarehouseError as error:
        report.fail("rights", str(error))
        return
    if missing:
        mend = "GRANT collector_writer to this role (roles.sql makes it), or use the owner"
        report.fail("rights", f"the role lacks {'; '.join(missing)}", mend)
    elif missing is not None:
        report.well("rights", "the role may read and store what is seen")


def _check_schema(warehouse: Warehouse, report: _Report) -> None:
    try:
        schema.require_current(warehouse.engine, to_write=False)
    except WarehouseError as error:
        report.fail("schema", str(error))
    else:
        report.well("schema", f"at {schema.head_revision()}, as this release needs")


def _check_groups(warehouse: Warehouse, report: _Report) -> None:
    """Tell whether the group roles exist; nobody needs them, least of all an embedded server."""
    if warehouse.embedded:
        return
    try:
        missing = missing_groups(warehouse.engine)
    except WarehouseError as error:
        report.fail("roles", str(error))
        return
    if missing:
        report.note("roles", f"{' and '.join(missing)} not there; roles.sql makes them, if they are wanted")
    else:
        report.note("roles", f"{' and '.join(GROUPS)} are there")


def _check_sessions(warehouse: Warehouse, report: _Report) -> None:
    subject = "direct_database_url"
    try:
        own = keeps_sessions(warehouse.direct)
    except WarehouseError as error:
        report.fail(subject, str(error), "leadership, leases and migrations need it")
        return
    if own:
        report.well(subject, "a session's locks are its own, which leadership and leases need")
    else:
        report.doubt(
            subject,
            "connections share sessions, as behind a pooler in transaction mode",
            "let it lead past the pooler: leadership, leases and migrations need sessions of their own",
        )


# This machine


def _check_spool(settings: Settings, report: _Report) -> None:
    folder = spool_folder(settings)
    try:
        if not folder.is_dir():  # made by whoever runs the daemon, who may be somebody else
            _check_place_of_spool(folder, report)
            return
        with tempfile.TemporaryFile(dir=folder):
            spool = spool_of(settings)
    except (OSError, SpoolError) as error:
        text = str(error) if isinstance(error, SpoolError) else f"{folder}: {error.strerror}"
        report.fail("spool", text, "let whoever runs the daemon write there, or choose another data_dir")
        return
    waiting = f"{_counted(spool.files, 'look')} ({spool.bytes} bytes) waiting in {folder}"
    if spool.full:
        mend = "mend the database, then `collector run` or `collector backfill --spool` stores them"
        report.fail("spool", f"full: {waiting}, and polling stops", mend)
    elif spool.damaged:
        damaged = f"{_counted(spool.damaged, 'file')} damaged"
        report.doubt("spool", f"{waiting}, {damaged}", f"see {spool.damaged_folder}")
    else:
        report.well("spool", waiting)


def _check_place_of_spool(folder: Path, report: _Report) -> None:
    above = next(parent for parent in folder.parents if parent.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        report.well("spool", f"{folder} will be made")
    else:
        report.fail("spool", f"{folder} cannot be made in {above}", "allow it, or choose another data_dir")


def _check_listen(settings: Settings, report: _Report) -> None:
    host, port = settings.listen
    try:
        bind(host, port).close()
    except UsageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE:
            report.note("listen", f"{place(host, port)} is in use, by the daemon if that runs")
        else:
            report.fail("listen", str(error).removeprefix("listen: "))
    else:
        report.well("listen", f"{place(host, port)} is free" if port else f"a free port of {host}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
