"""Whoever puts events into a feed.  Needs the base install only."""
