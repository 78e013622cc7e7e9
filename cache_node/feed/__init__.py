"""The log: one ordered, replayable stream of invalidations per region, and what a node knows from it.

Nothing here knows bodies, HTTP or the origin.  `sources` fill the log, `sessions` ask the fence and the lease.
"""
