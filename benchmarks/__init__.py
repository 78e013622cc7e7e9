"""Measurements, each a ratio of two cases in one run."""
