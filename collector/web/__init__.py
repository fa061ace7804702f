"""Health, metrics and the status page over HTTP: shows what the daemon knows of itself, changes nothing."""
