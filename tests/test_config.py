"""A node's settings: defaults, checks that name the variable, and nothing secret in a repr."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_node.config import Address, NodeSettings, load
from cache_node.environment import SETTINGS, variable
from cache_node.errors import ConfigurationError

ORIGIN = {"CACHE_NODE_ORIGIN_URL": "http://127.0.0.1:4433"}
SECRET = "hunter2-hunter2-hunter2-hunter2-hunter2"


def settings(**given: str) -> NodeSettings:
    """Settings from variables, each named like its setting."""
    return load(ORIGIN | {variable(name): value for name, value in given.items()})


def refusal(**given: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings(**given)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_the_model_and_the_table_of_names_are_one() -> None:
    assert set(NodeSettings.model_fields) == set(SETTINGS)


def test_defaults_are_those_of_the_interface() -> None:
    defaults = settings().model_dump()
    assert len(defaults.pop("secrets")[0]) >= 32
    assert 8 <= len(defaults.pop("node_id")) <= 16
    assert defaults == {
        "origin_url": "http://127.0.0.1:4433",
        "origin_timeout_seconds": 5.0,
        "origin_concurrency": 64,
        "origin_ready_path": "/health/ready",
        "redis_url": None,
        "key_prefix": "cache-node",
        "listen": "127.0.0.1:4455",
        "admin_listen": "127.0.0.1:4456",
        "admin_token": None,
        "region": "default",
        "max_staleness_seconds": 2.0,
        "memory_bytes": 268435456,
        "entry_ttl_seconds": 900.0,
        "stale_if_error_seconds": 3600.0,
        "fence_window_seconds": 900.0,
        "fence_ids": 250000,
        "feed_events": 1000000,
        "session_cookie": "ory_kratos_session",
        "cookie_max_age_seconds": 86400.0,
        "log_level": "info",
    }


def test_every_variable_arrives() -> None:
    given = {
        "origin_url": "https://kratos.example/base/",
        "origin_timeout_seconds": "1.5",
        "origin_concurrency": "7",
        "origin_ready_path": "",
        "redis_url": "redis://:pass@host:6379/1",
        "key_prefix": "blue",
        "secrets": f"{'a' * 32}, {SECRET}",
        "listen": "[::1]:0",
        "admin_listen": "0.0.0.0:0",
        "admin_token": "t",
        "region": "eu-central",
        "node_id": "pod-1",
        "max_staleness_seconds": "0.5",
        "memory_bytes": "1",
        "entry_ttl_seconds": "10",
        "stale_if_error_seconds": "0",
        "fence_window_seconds": "60",
        "fence_ids": "10",
        "feed_events": "100",
        "session_cookie": "__Host-s",
        "cookie_max_age_seconds": "3600",
        "log_level": "WARNING",
    }
    assert set(given) == set(SETTINGS)
    assert settings(**given).model_dump() == given | {
        "origin_url": "https://kratos.example/base",
        "origin_timeout_seconds": 1.5,
        "origin_concurrency": 7,
        "secrets": ("a" * 32, SECRET),
        "max_staleness_seconds": 0.5,
        "memory_bytes": 1,
        "entry_ttl_seconds": 10.0,
        "stale_if_error_seconds": 0.0,
        "fence_window_seconds": 60.0,
        "fence_ids": 10,
        "feed_events": 100,
        "cookie_max_age_seconds": 3600.0,
        "log_level": "warning",
    }


def test_a_file_gives_numbers_texts_and_a_list(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        f'origin_url = "http://origin"\nmemory_bytes = 1\nmax_staleness_seconds = 1\nfence_ids = "5"\n'
        f'secrets = ["{SECRET}", "{"b" * 32}"]\n'
    )
    loaded = load({"CACHE_NODE_FENCE_IDS": "6"}, path)
    assert (loaded.memory_bytes, loaded.max_staleness_seconds, loaded.fence_ids) == (1, 1.0, 6)
    assert loaded.secrets == (SECRET, "b" * 32)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("origin_url", ["", "kratos:4433", "ftp://host", "http://", "http://a b", "http://h:0", "http://h:99999"]),
        ("origin_url", [f"http://u:{SECRET}@host", f"http://host?{SECRET}", "http://host/#x", "http://host\n"]),
        ("origin_timeout_seconds", ["", "0", "-1", "nan", "inf", "5s", "1000"]),
        ("origin_concurrency", ["0", "1.5", "-3", "many"]),
        ("origin_ready_path", ["health", " ", "/a b", "/ä", "/#", "http://host/health"]),
        ("redis_url", ["", "host:6379", f"redis+cluster://:{SECRET}@a", f"http://:{SECRET}@a"]),
        ("key_prefix", ["", "a b", "{a}", "a}", "a\n", "x" * 65]),
        ("secrets", ["", ",", "short", f"{SECRET},", f"{SECRET},short", f"{SECRET},,{SECRET}", f"{SECRET}\n{SECRET}"]),
        (
            "listen",
            ["", "4455", ":4455", "host", "host:", "host:x", "host:65536", "::1:80", "[::1]", "[::1:80", "a b:1"],
        ),
        ("listen", ["http://h:1", "[host]:1", "256.0.0.1:1", "1:1", "h:-1", "h:٣"]),
        ("admin_listen", ["", "127.0.0.1"]),
        ("admin_token", ["", f"{SECRET} {SECRET}", f"{SECRET}ä", f"{SECRET}\n"]),
        ("region", ["", "a b", "a/b", "a\tb", "x" * 65]),
        ("node_id", ["", "a b", "a/b", "x" * 65]),
        ("max_staleness_seconds", ["0", "0.05", "301", "nan"]),
        ("memory_bytes", ["0", "-1", "1GB", "1.5", "1e9"]),
        ("entry_ttl_seconds", ["0", "-1", "inf"]),
        ("stale_if_error_seconds", ["-1", "nan"]),
        ("fence_window_seconds", ["0"]),
        ("fence_ids", ["0"]),
        ("feed_events", ["0", "2000000000"]),
        ("session_cookie", ["", "a b", "a=b", "a;b", "ä", "x" * 257]),
        ("cookie_max_age_seconds", ["0"]),
        ("log_level", ["", "trace", "20"]),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, values: list[str]) -> None:
    for value in values:
        assert refusal(**{name: value}).startswith(variable(name)), value


def test_the_origin_is_required() -> None:
    with pytest.raises(ConfigurationError, match=r"^CACHE_NODE_ORIGIN_URL is required"):
        load({})


def test_secrets_are_required_with_a_redis_url_only() -> None:
    assert refusal(redis_url=f"redis://:{SECRET}@host").startswith("CACHE_NODE_SECRETS is required")
    assert settings(redis_url="redis://host", secrets=SECRET).secrets == (SECRET,)
    assert settings(secrets=SECRET).secrets == (SECRET,)
    assert settings().secrets != settings().secrets


def test_node_ids_are_random() -> None:
    assert settings().node_id != settings().node_id


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.3.2.1:80", "localhost:0", "LOCALHOST:0", "[::1]:0"])
def test_a_loopback_admin_port_needs_no_token(listen: str) -> None:
    assert settings(admin_listen=listen).admin_token is None


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "localhost.example:0", "node:0"])
def test_any_other_admin_port_needs_one(listen: str) -> None:
    assert refusal(admin_listen=listen).startswith("CACHE_NODE_ADMIN_TOKEN is required")
    assert settings(admin_listen=listen, admin_token=SECRET).admin_token == SECRET


def test_the_two_ports_are_two() -> None:
    assert refusal(listen="127.0.0.1:1", admin_listen="127.0.0.1:1").startswith("CACHE_NODE_ADMIN_LISTEN")
    settings(listen="127.0.0.1:0", admin_listen="127.0.0.1:0")


def test_addresses_are_taken_apart() -> None:
    given = settings(listen="[::1]:0", admin_listen="localhost:80")
    assert given.listen_address == Address("::1", 0)
    assert given.admin_address == ("localhost", 80)


def test_settings_are_checked_when_built_by_keyword_too() -> None:
    built = NodeSettings(origin_url="http://host/", redis_url=None, admin_token=None, secrets=(SECRET,), memory_bytes=5)
    assert (built.origin_url, built.secrets, built.memory_bytes) == ("http://host", (SECRET,), 5)
    with pytest.raises(ConfigurationError, match=r"^CACHE_NODE_MEMORY_BYTES must be a whole number"):
        NodeSettings(origin_url="http://host", memory_bytes=0)
    with pytest.raises(ConfigurationError, match=r"^CACHE_NODE_SECRETS"):
        NodeSettings(origin_url="http://host", secrets=(SECRET + "," + SECRET,))


def test_settings_are_frozen_and_take_the_url_of_an_embedded_server_by_a_copy() -> None:
    given = settings()
    with pytest.raises(ValueError, match="frozen"):
        given.redis_url = "redis://host"
    copy = given.model_copy(update={"redis_url": "redis://127.0.0.1:1"})
    assert (copy.redis_url, copy.secrets) == ("redis://127.0.0.1:1", given.secrets)


def test_repr_shows_where_but_no_credential() -> None:
    given = settings(
        redis_url=f"redis://u:{SECRET}@host:6379/0?password={SECRET}",
        secrets=f"{SECRET},{SECRET}x",
        admin_token=SECRET,
        region="eu",
    )
    for shown in (repr(given), str(given)):
        assert SECRET not in shown
        assert "redis://host:6379/0" in shown
        assert "eu" in shown


def test_settings_survive_pickling() -> None:
    given = settings(secrets=SECRET)
    assert pickle.loads(pickle.dumps(given)) == given  # noqa: S301 - our own bytes


def message(build: Callable[[], NodeSettings]) -> str:
    """Empty when the settings were accepted."""
    try:
        build()
    except ConfigurationError as error:
        return str(error)
    return ""


@given(name=st.sampled_from(SETTINGS), value=st.text(st.characters(exclude_categories=["Cs"]), max_size=70))
def test_any_text_is_accepted_or_refused_in_one_line(name: str, value: str) -> None:
    environ = ORIGIN | {"CACHE_NODE_SECRETS": SECRET, "CACHE_NODE_ADMIN_TOKEN": "t"} | {variable(name): value}
    refused = message(lambda: load(environ))
    assert not refused or refused.startswith(variable(name))
    assert refused.isprintable()


@given(
    name=st.sampled_from(SETTINGS),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.lists(st.text()),
)
def test_any_type_is_accepted_or_refused_in_one_line(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"origin_url": "http://host", "secrets": SECRET} | {name: value}
    refused = message(lambda: NodeSettings.model_validate(arguments))
    assert not refused or variable(name) in refused
    assert refused.isprintable()
