"""The suite: real PostgreSQL, real boto3 over a real socket; only AWS is simulated, on the wire."""
