"""A session cache tier: edge nodes answer `GET /sessions/whoami` from memory, and a revoked session dies everywhere.

Origin services import the publishers from here; nothing else is loaded with them.
"""

from cache_node.errors import CacheNodeError, ConfigurationError, FeedUnavailableError, InvalidEventError
from cache_node.feed.events import Event, EventType
from cache_node.feed.position import Position
from cache_node.sources.publisher import AsyncPublisher, Publisher
from cache_node.sources.receipt import Receipt, ReceiptNode

__all__ = [
    "AsyncPublisher",
    "CacheNodeError",
    "ConfigurationError",
    "Event",
    "EventType",
    "FeedUnavailableError",
    "InvalidEventError",
    "Position",
    "Publisher",
    "Receipt",
    "ReceiptNode",
]
__version__ = "0.1.0"
