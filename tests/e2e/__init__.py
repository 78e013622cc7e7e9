"""Whole nodes over a real Valkey: what an operator would see."""
