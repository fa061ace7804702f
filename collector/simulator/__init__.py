"""A simulated EC2, on the wire: what the demo shows and the tests poll."""
