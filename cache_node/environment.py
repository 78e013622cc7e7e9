"""How settings reach a process: `CACHE_NODE_*` variables over a TOML file, and the few settings of a publisher.

Needs the base install only.  Every name is known or refused here; of the values, those that more than the node reads
are judged here and the others in config.py.  No message holds a secret, a token, or a URL that could carry a password.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from cache_node.errors import ConfigurationError

PREFIX = "CACHE_NODE_"

SETTINGS = (
    "origin_url",
    "origin_timeout_seconds",
    "origin_concurrency",
    "origin_ready_path",
    "redis_url",
    "key_prefix",
    "secrets",
    "listen",
    "admin_listen",
    "admin_token",
    "region",
    "node_id",
    "max_staleness_seconds",
    "memory_bytes",
    "entry_ttl_seconds",
    "stale_if_error_seconds",
    "fence_window_seconds",
    "fence_ids",
    "feed_events",
    "session_cookie",
    "cookie_max_age_seconds",
    "log_level",
)
"""Every setting of this version, named as in a TOML file; the variable is `variable(name)`."""

_LATER = ("sources", "cors_origins", "postgres_url", "relay_source_url")
"""Settings of later versions.  The first two are lists whose default is none, so an empty one says nothing."""

_LISTS = ("secrets", "sources", "cors_origins")
"""A TOML file may give these as a list; in a variable they are separated by commas."""

_FROM_KUBERNETES = re.compile(r"SERVICE_.*|PORT|PORT_.*", re.DOTALL)
"""What Kubernetes injects for a Service named cache-node, without the prefix."""

DEFAULT_KEY_PREFIX = "cache-node"
DEFAULT_MAX_STALENESS_SECONDS = 2.0
DEFAULT_FEED_EVENTS = 1_000_000
MAX_STALENESS_RANGE_SECONDS = (0.1, 300.0)
FEED_EVENTS_RANGE = (1, 1_000_000_000)

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_REDIS_SCHEMES_LATER = ("redis+sentinel", "redis+cluster")
_REDIS_OPTIONS = ("db", "username", "password")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
"""What may follow the `?`.  Options of redis-py win over arguments, so one for timeouts or retries would undo ours."""


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """What publishing needs.  Nodes and publishers of one feed must agree on all but `redis_url` and `admin_token`."""

    redis_url: str = field(repr=False)
    key_prefix: str = DEFAULT_KEY_PREFIX
    max_staleness_seconds: float = DEFAULT_MAX_STALENESS_SECONDS
    feed_events: int = DEFAULT_FEED_EVENTS
    admin_token: str | None = field(default=None, repr=False)


def read_settings(environ: Mapping[str, str], config_path: str | Path | None = None) -> dict[str, str | int | float]:
    """All settings that are given, by lower-case name: variables as text, values of the TOML file as they are there.

    Values are not judged yet.  Raises ConfigurationError, one line, for a name that this version does not know or not
    yet have, and for a file that cannot be read.
    """
    settings = {} if config_path is None else _read_file(Path(config_path))
    settings.update(_read_environment(environ))
    return _without_later(settings)


def publisher_settings(
    environ: Mapping[str, str],
    config_path: str | Path | None = None,
    redis_url: str | None = None,
    key_prefix: str | None = None,
) -> PublisherSettings:
    """The settings of a publisher; arguments win over variables, variables over the file.

    Raises ConfigurationError, one line, for whatever `read_settings` refuses, a wrong value, and a missing Redis URL.
    """
    given: dict[str, object] = dict(read_settings(environ, config_path))
    given |= {} if redis_url is None else {"redis_url": redis_url}
    given |= {} if key_prefix is None else {"key_prefix": key_prefix}
    if "redis_url" not in given:
        raise ConfigurationError(
            f"{variable('redis_url')} is required: the Redis that holds the feed, such as redis://127.0.0.1:6379"
        )
    staleness = given.get("max_staleness_seconds", DEFAULT_MAX_STALENESS_SECONDS)
    return PublisherSettings(
        redis_url=check_redis_url("redis_url", given["redis_url"]),
        key_prefix=check_key_prefix("key_prefix", given.get("key_prefix", DEFAULT_KEY_PREFIX)),
        max_staleness_seconds=check_number("max_staleness_seconds", staleness, *MAX_STALENESS_RANGE_SECONDS),
        feed_events=check_whole_number(
            "feed_events", given.get("feed_events", DEFAULT_FEED_EVENTS), *FEED_EVENTS_RANGE
        ),
        admin_token=check_admin_token("admin_token", given["admin_token"]) if "admin_token" in given else None,
    )


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def check_text(name: str, value: object) -> str:
    """A text that is not empty.  Like every check here it takes a setting's name, and its error names the variable."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{variable(name)} must be a text, in a TOML file in quotes")
    if not value:
        raise ConfigurationError(f"{variable(name)} is empty: give it a value, or unset it")
    return value


def check_number(name: str, value: object, minimum: float, maximum: float) -> float:
    """A finite number within bounds, as a number or in digits."""
    number = _parsed(value, float)
    if number is None or not minimum <= number <= maximum:
        bounds = f"{minimum:.15g} to {maximum:.15g}"
        raise ConfigurationError(f"{variable(name)} must be a number from {bounds}, not {_shown(value)}")
    return float(number)


def check_whole_number(name: str, value: object, minimum: int, maximum: int) -> int:
    """A whole number within bounds, as a number or in digits."""
    number = None if isinstance(value, float) else _parsed(value, int)
    if number is None or not minimum <= number <= maximum:
        bounds = f"{minimum} to {maximum}"
        raise ConfigurationError(f"{variable(name)} must be a whole number from {bounds}, not {_shown(value)}")
    return int(number)


def check_key_prefix(name: str, value: object) -> str:
    """1 to 64 printable characters without spaces or braces: braces decide where a Redis Cluster puts a key."""
    text = check_text(name, value)
    if len(text) > 64 or not is_printable(text) or not {"{", "}"}.isdisjoint(text):
        raise ConfigurationError(f"{variable(name)} must be 1 to 64 printable characters without spaces or braces")
    return text


def check_admin_token(name: str, value: object) -> str:
    """Visible ASCII, since it travels in a header; the message never shows the value."""
    text = check_text(name, value)
    if not text.isascii() or not is_printable(text):
        raise ConfigurationError(f"{variable(name)} must be visible ASCII characters without spaces")
    return text


def check_redis_url(name: str, value: object) -> str:
    """`redis://`, `rediss://` or `unix://`, as redis-py reads them; the message never shows the value."""
    text = check_text(name, value)
    allowed = "redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH"
    scheme = text.partition("://")[0].lower()
    if scheme in _REDIS_SCHEMES_LATER:  # several hosts make it a URL that _split cannot read
        raise ConfigurationError(f"{variable(name)}: {scheme}:// is not in this version, use {allowed}")
    url = _split(text)
    if url is None or url.scheme not in _REDIS_SCHEMES or not _names_server(url):
        raise ConfigurationError(f"{variable(name)} must be {allowed}")
    if url.scheme != "unix" and not re.fullmatch(r"/?[0-9]{0,9}", url.path):
        raise ConfigurationError(
            f"{variable(name)}: what follows the host must be the number of a database, such as /0"
        )
    options = parse_qsl(url.query, keep_blank_values=True)
    known = _REDIS_OPTIONS + (_TLS_OPTIONS if url.scheme == "rediss" else ())
    if not {option for option, _ in options} <= set(known):
        raise ConfigurationError(f"{variable(name)}: the only options of this URL are {', '.join(known)}")
    if any(option == "db" and not re.fullmatch(r"[0-9]{1,9}", number) for option, number in options):
        raise ConfigurationError(f"{variable(name)}: the option db must be the number of a database")
    return text


def check_http_url(what: str, value: str) -> str:
    """An `http://` or `https://` base URL without its trailing slashes; the message begins with `what`, never shows it.

    User names, queries and fragments are refused: they would be dropped or sent where they were not meant to go.
    """
    url = _split(value)
    if url is None or url.scheme not in ("http", "https") or not _has_host(url):
        raise ConfigurationError(f"{what} must be http://HOST:PORT or https://HOST:PORT")
    if "@" in url.netloc or "?" in value or "#" in value:
        raise ConfigurationError(f"{what} must be a URL without user name, query or fragment")
    return value.rstrip("/")


def is_printable(text: str) -> bool:
    """No spaces, no control characters, nothing that could break a line of a log."""
    return text.isprintable() and " " not in text


def without_credentials(url: str) -> str:
    """A URL for people to read: user name, password and options left out."""
    parts = _split(url)
    if parts is None:
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read_environment(environ: Mapping[str, str]) -> dict[str, str | int | float]:
    names = sorted(name for name in environ if name.startswith(PREFIX))
    ours = [name for name in names if not _FROM_KUBERNETES.fullmatch(name.removeprefix(PREFIX))]
    known = {variable(name): name for name in SETTINGS + _LATER}
    for name in ours:
        if name not in known:
            near = _nearest(name.removeprefix(PREFIX).lower())
            hint = f"; did you mean {variable(near)}?" if near else ""
            raise ConfigurationError(f"{_shown(name)} is not a setting of this version{hint}")
        if not _is_unicode(environ[name]):
            raise ConfigurationError(f"{name} must be valid UTF-8")
    return {known[name]: environ[name] for name in ours}


def _read_file(path: Path) -> dict[str, str | int | float]:
    settings: dict[str, str | int | float] = {}
    for name, value in _parse_file(path).items():
        if name not in SETTINGS + _LATER:
            near = _nearest(name.lower().removeprefix(PREFIX.lower()))
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigurationError(f"{_shown(name)} in {path} is not a setting of this version{hint}")
        settings[name] = _file_value(name, value)
    return settings


def _file_value(name: str, value: object) -> str | int | float:
    if name in _LISTS and isinstance(value, list):
        if not all(isinstance(item, str) and item and "," not in item for item in value):
            raise ConfigurationError(
                f"{variable(name)} must be a list of texts, none of them empty or with a comma in it"
            )
        return ",".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigurationError(f"{variable(name)} must be a text or a number")
    if isinstance(value, int) and value.bit_length() > 63:  # the limit of TOML, which tomllib does not keep
        raise ConfigurationError(f"{variable(name)} is too large a number")
    return value


def _parse_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the configuration file {path} must be valid UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib quotes keys at most, never a value
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a value is too long or nested too deep"
        raise ConfigurationError(f"the configuration file {path} is not valid TOML: {reason}") from None


def _without_later(settings: dict[str, str | int | float]) -> dict[str, str | int | float]:
    for name in _LATER:
        value = settings.pop(name, None)
        if value is not None and not (name in _LISTS and value == ""):
            raise ConfigurationError(f"{variable(name)} is not in this version: unset it")
    return settings


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, SETTINGS, n=1)), None)


def _parsed(value: object, kind: type[int] | type[float]) -> int | float | None:
    """None for what is no finite number; bool is an int to Python, but not to whoever wrote `true`."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = kind(value)
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _split(text: str) -> SplitResult | None:
    """None for what is no URL; urlsplit drops line breaks and tabs, and looks at the port only when asked."""
    if not is_printable(text):
        return None
    try:
        url = urlsplit(text)
        return None if url.port == 0 else url
    except ValueError:
        return None


def _has_host(url: SplitResult) -> bool:
    return re.fullmatch(r"[\w.:%-]+", url.hostname or "") is not None


def _names_server(url: SplitResult) -> bool:
    if url.scheme == "unix":
        return bool(url.path.strip("/")) and not url.hostname
    return _has_host(url)  # redis-py would go to localhost, and so hide a variable that was not filled in


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8 arrive as lone surrogates
        return False
    return True


def _shown(value: object) -> str:
    """A wrong value or name, quoted and shortened to stay within a line."""
    text = repr(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"
