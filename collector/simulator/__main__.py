"""``python -m collector.simulator``: a simulated EC2 to develop with, or to try the AWS CLI on."""

import argparse
import signal
import sys
from datetime import UTC, datetime, timedelta
from threading import Event

from collector.simulator.clock import SimulatedClock
from collector.simulator.fleet import Fleet
from collector.simulator.server import Simulator

ACCOUNT = "111122223333"


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted or terminated."""
    options = _parser().parse_args(arguments)
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    fleet = Fleet(SimulatedClock(datetime.now(UTC), options.rate), options.seed, shuffle=True)
    for region in options.regions:
        fleet.populate(ACCOUNT, region, options.tasks)
        if options.every:
            fleet.keep_importing(ACCOUNT, region, every=timedelta(minutes=options.every))
    with Simulator(fleet, regions=options.regions, default_account=ACCOUNT, port=options.port) as simulator:
        _introduce(simulator, options)
        while not ended.wait(1):
            pass  # waiting for ever cannot be interrupted on every platform


def _introduce(simulator: Simulator, options: argparse.Namespace) -> None:
    lines = [
        f"Simulated EC2 at {simulator.url} ({', '.join(options.regions)}; {options.rate:g} s a second).",
        *(f"export {name}={value}" for name, value in simulator.environment.items()),
        "# aws ec2 describe-import-image-tasks",
        "",
    ]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m collector.simulator", description="A simulated EC2.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--rate", type=float, default=60.0, help="simulated seconds per second (default: 60)")
    parser.add_argument("--regions", nargs="+", default=["us-east-1", "eu-central-1"], help="enabled Regions")
    parser.add_argument("--tasks", type=int, default=50, help="imports per Region (default: 50)")
    parser.add_argument(
        "--every",
        type=float,
        default=30.0,
        metavar="MINUTES",
        help="between new imports (default: 30; 0: none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same imports")
    return parser


if __name__ == "__main__":
    main()
