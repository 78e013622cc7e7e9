"""What operators talk to: the admin port, metrics and status.  Nothing here is on the way of a session's answer."""
