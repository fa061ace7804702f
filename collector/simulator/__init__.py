"""A simulated EC2 for demo and tests: unmodified boto3 and the AWS CLI talk to it over a real socket.

Standard library only, and nothing else of ``collector``: a simulator that shared code with what it tests
would share its mistakes. ``clock`` is its time, ``lives`` how one import looks at a moment, ``planning``
what imports people ask for, ``fleet`` all of them, ``callers`` who asks, ``faults`` what goes wrong,
``server`` the socket. STS and Organizations answer there as well, as far as many accounts need them, and
CloudTrail, which tells who asked for imports (``trail`` writes its events).
"""

from collector.simulator.clock import SimulatedClock
from collector.simulator.faults import Faults
from collector.simulator.fleet import Fleet
from collector.simulator.server import Simulator

__all__ = ["Faults", "Fleet", "SimulatedClock", "Simulator"]
