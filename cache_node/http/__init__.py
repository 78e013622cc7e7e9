"""What apps talk to: the server, its limits, and the reading of requests."""
