"""`python -m cache_node` is `cache-node`."""

import sys

from cache_node.cli import main

if __name__ == "__main__":
    sys.exit(main())
