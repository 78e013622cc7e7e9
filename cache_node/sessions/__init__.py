"""The read path: two tiers, the origin, and the reader that decides between them by fence and lease."""
