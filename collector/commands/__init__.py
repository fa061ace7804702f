"""What each command does: it puts the parts together, and imports only those that it needs."""
