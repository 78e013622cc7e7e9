"""Every error that this package raises on purpose.

The message of each is one line that says what is wrong and, where there is something to do, what to do.  No message
ever holds a credential: adapters translate library errors here and drop their texts where those could quote one.
"""


class CacheNodeError(Exception):
    """Base of all; the command line prints it as one line and exits with status 1."""


class ConfigurationError(CacheNodeError):
    """A setting, option or argument is wrong, unknown or missing; exit status 2."""


class MissingExtraError(CacheNodeError):
    """A command needs packages that an extra of this distribution brings."""


class InvalidEventError(CacheNodeError):
    """An event cannot be published as given: unknown type, missing or malformed id."""


class FeedUnavailableError(CacheNodeError):
    """The feed could not be read or written within the deadline.

    After a publish this means *unknown*: the event may be in the feed.  Publishing it again is harmless.
    """


class OriginUnavailableError(CacheNodeError):
    """The origin gave no answer that may be believed; `cause` is a short word for metrics and Cache-Status."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
