"""Every guard of the consistency core is removed once, and a test must notice.

Each `*.patch` here is a small unified diff against `cache_node/` that takes one guard away, with three lines before it:

    Guard: what the removed line guards
    Race: one of RACES (races.py), or `Guarantee: …`
    Test: the pytest node id of the test that must fail

`python -m tests.guards` (`make guards`) applies each to a copy of the checkout and runs its test there.  A patch that
does not apply any more is an error, as is a guard whose removal no test notices; `--renew` writes those anew that only
lack the lines around them.  `--histories` has random histories (tests/histories) notice what they can, too, without
knowing where to look; histories.py says what they cannot, and why.
"""
