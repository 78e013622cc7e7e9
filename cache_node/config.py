"""The node's settings: README's table, checked, with its defaults.

Every wrong value raises ConfigurationError with one line that names the variable and what is allowed, whether it came
from the environment, a file, or an argument.  Whether an address can be reached is not asked here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from cache_node.environment import (
    DEFAULT_FEED_EVENTS,
    DEFAULT_KEY_PREFIX,
    DEFAULT_MAX_STALENESS_SECONDS,
    FEED_EVENTS_RANGE,
    MAX_STALENESS_RANGE_SECONDS,
    check_admin_token,
    check_http_url,
    check_key_prefix,
    check_number,
    check_redis_url,
    check_text,
    check_whole_number,
    is_printable,
    read_settings,
    variable,
    without_credentials,
)
from cache_node.errors import ConfigurationError

MIN_SECRET_CHARACTERS = 32
LOG_LEVELS = ("debug", "info", "warning", "error")

_DAY_SECONDS = 86400.0
_COOKIE_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")  # RFC 6265, 4.1.1: a token of RFC 9110
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


class Address(NamedTuple):
    """Where to listen; `host` is a name or an address without brackets, `port` 0 lets the system pick."""

    host: str
    port: int


def is_loopback(host: str) -> bool:
    """Whether only this machine answers to it; a name other than localhost is taken for anybody's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_address(name: str, value: object) -> Address:
    """Read `host:port`, with an IPv6 address in brackets: `[::1]:0`.  Raises ConfigurationError naming the setting."""
    host, colon, port = check_text(name, value).rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    is_host = _is_address(bare, 6) if bracketed else _is_name(bare) or _is_address(bare, 4)
    if not colon or not is_host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ConfigurationError(
            f"{variable(name)} must be HOST:PORT, an IPv6 address in brackets, such as 127.0.0.1:4455 or [::1]:0"
        )
    return Address(bare, int(port))


def _checked(check: Callable[..., object], *limits: float) -> BeforeValidator:
    """Let `check(name, value, *limits)` read and judge a field before pydantic sees it.

    ConfigurationError is no ValueError, so pydantic lets it through as it is.
    """

    def validate(value: object, info: ValidationInfo) -> object:
        return check(info.field_name, value, *limits)

    return BeforeValidator(validate)


def _check_origin_url(name: str, value: object) -> str:
    return check_http_url(variable(name), check_text(name, value))


def _check_ready_path(name: str, value: object) -> str:
    if value == "":
        return ""
    text = check_text(name, value)
    if not text.startswith("/") or not text.isascii() or not is_printable(text) or "#" in text:
        raise ConfigurationError(
            f"{variable(name)} must be a path that starts with /, or empty for an origin without one"
        )
    return text


def _check_listen(name: str, value: object) -> str:
    parse_address(name, value)
    return str(value)


def _check_label(name: str, value: object) -> str:
    text = check_text(name, value)
    if len(text) > 64 or not is_printable(text) or "/" in text:
        raise ConfigurationError(f"{variable(name)} must be 1 to 64 printable characters without spaces or slashes")
    return text


def _check_cookie_name(name: str, value: object) -> str:
    text = check_text(name, value)
    if not _COOKIE_NAME.fullmatch(text):
        raise ConfigurationError(f"{variable(name)} must be the name of a cookie: letters, digits and !#$%&'*+-.^_`|~")
    return text


def _check_log_level(name: str, value: object) -> str:
    text = check_text(name, value).lower()
    if text not in LOG_LEVELS:
        raise ConfigurationError(f"{variable(name)} must be one of {', '.join(LOG_LEVELS)}")
    return text


def _check_secrets(name: str, value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    allowed = f"{variable(name)} must be secrets separated by commas, each at least {MIN_SECRET_CHARACTERS} characters"
    if not isinstance(items, list | tuple) or not items or not all(isinstance(item, str) for item in items):
        raise ConfigurationError(allowed)
    secrets = tuple(item.strip() for item in items)
    for index, secret in enumerate(secrets, 1):
        if len(secret) < MIN_SECRET_CHARACTERS or "," in secret or not secret.isprintable():
            raise ConfigurationError(f"{allowed} and printable (number {index} is not)")
    return secrets


def _is_address(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


def _is_name(host: str) -> bool:
    """A host name; figures and dots alone are an address, and a wrong one if they are no address."""
    return _HOST_NAME.fullmatch(host) is not None and re.fullmatch(r"[0-9.]+", host) is None


class NodeSettings(BaseModel):
    """One node's settings; frozen.  `repr()` leaves out the secrets, the admin token, and a Redis URL's credentials.

    Built by `load`, or with the same checks by keyword.  `model_copy(update=…)` checks nothing: it is for a value that
    the node found out itself, such as the URL of an embedded Valkey.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    origin_url: Annotated[str, _checked(_check_origin_url)]
    """Kratos' public base URL, without a trailing slash."""
    origin_timeout_seconds: Annotated[float, _checked(check_number, 0.01, 300.0)] = 5.0
    origin_concurrency: Annotated[int, _checked(check_whole_number, 1, 100_000)] = 64
    origin_ready_path: Annotated[str, _checked(_check_ready_path)] = "/health/ready"
    """Empty: the origin has none."""
    redis_url: Annotated[str | None, _checked(check_redis_url)] = None
    """None: the node starts an embedded Valkey."""
    key_prefix: Annotated[str, _checked(check_key_prefix)] = DEFAULT_KEY_PREFIX
    secrets: Annotated[tuple[str, ...], _checked(_check_secrets), Field(repr=False)] = ()
    """At least one once built: the first writes, all read.  Random without a Redis URL."""
    listen: Annotated[str, _checked(_check_listen)] = "127.0.0.1:4455"
    admin_listen: Annotated[str, _checked(_check_listen)] = "127.0.0.1:4456"
    admin_token: Annotated[str | None, _checked(check_admin_token), Field(repr=False)] = None
    region: Annotated[str, _checked(_check_label)] = "default"
    node_id: Annotated[str, _checked(_check_label)] = Field(default_factory=lambda: token_hex(6))
    max_staleness_seconds: Annotated[float, _checked(check_number, *MAX_STALENESS_RANGE_SECONDS)] = (
        DEFAULT_MAX_STALENESS_SECONDS
    )
    memory_bytes: Annotated[int, _checked(check_whole_number, 1, 2**44)] = 268_435_456
    entry_ttl_seconds: Annotated[float, _checked(check_number, 0.1, 30 * _DAY_SECONDS)] = 900.0
    stale_if_error_seconds: Annotated[float, _checked(check_number, 0.0, 30 * _DAY_SECONDS)] = 3600.0
    fence_window_seconds: Annotated[float, _checked(check_number, 0.1, 30 * _DAY_SECONDS)] = 900.0
    fence_ids: Annotated[int, _checked(check_whole_number, 1, 100_000_000)] = 250_000
    feed_events: Annotated[int, _checked(check_whole_number, *FEED_EVENTS_RANGE)] = DEFAULT_FEED_EVENTS
    session_cookie: Annotated[str, _checked(_check_cookie_name)] = "ory_kratos_session"
    cookie_max_age_seconds: Annotated[float, _checked(check_number, 0.1, 3650 * _DAY_SECONDS)] = _DAY_SECONDS
    log_level: Annotated[str, _checked(_check_log_level)] = "info"

    @property
    def listen_address(self) -> Address:
        """`listen`, taken apart."""
        return parse_address("listen", self.listen)

    @property
    def admin_address(self) -> Address:
        """`admin_listen`, taken apart."""
        return parse_address("admin_listen", self.admin_listen)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """What is required, and the secrets of a node whose Redis nobody else reads."""
        if given.get("origin_url") is None:
            raise ConfigurationError(
                f"{variable('origin_url')} is required: Kratos' public base URL, such as http://127.0.0.1:4433"
            )
        # None says "not given", which no check has to know.
        given = {name: value for name, value in given.items() if value is not None}
        if not {"secrets", "redis_url"} & given.keys():
            given["secrets"] = (token_urlsafe(48),)
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """What two settings must not say together."""
        if not self.secrets:
            raise ConfigurationError(
                f"{variable('secrets')} is required with {variable('redis_url')}: comma-separated, "
                f"each at least {MIN_SECRET_CHARACTERS} characters, the same on every node"
            )
        if self.admin_token is None and not is_loopback(self.admin_address.host):
            raise ConfigurationError(
                f"{variable('admin_token')} is required when {variable('admin_listen')} is not a loopback address"
            )
        if self.listen_address == self.admin_address and self.listen_address.port != 0:
            raise ConfigurationError(f"{variable('admin_listen')} must be another address than {variable('listen')}")
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_credentials(value) if name == "redis_url" and value else value


def load(environ: Mapping[str, str], config_path: str | Path | None = None) -> NodeSettings:
    """The variables over the TOML file.  Raises ConfigurationError, one line that names the first problem."""
    return NodeSettings.model_validate(read_settings(environ, config_path))
