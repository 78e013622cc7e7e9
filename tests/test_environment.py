"""Names are known or refused, the environment wins over the file, and no message shows a credential."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from cache_node.environment import (
    SETTINGS,
    PublisherSettings,
    check_http_url,
    check_number,
    check_redis_url,
    check_whole_number,
    publisher_settings,
    read_settings,
    variable,
    without_credentials,
)
from cache_node.errors import ConfigurationError

CREDENTIAL = "hunter2-hunter2-hunter2-hunter2-hunter2"


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def refusal(environ: dict[str, str], path: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(environ, path)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert CREDENTIAL not in message
    return message


def test_every_setting_is_read_from_its_variable() -> None:
    environ = {variable(name): f"value of {name}" for name in SETTINGS}
    assert read_settings(environ | {"PATH": "/bin", "CACHE_NODEX": "1"}) == {n: f"value of {n}" for n in SETTINGS}


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, 'region = "file"\nmemory_bytes = 1\nentry_ttl_seconds = 1.5\n')
    settings = read_settings({"CACHE_NODE_REGION": "environment"}, path)
    assert settings == {"region": "environment", "memory_bytes": 1, "entry_ttl_seconds": 1.5}


def test_a_list_of_secrets_in_a_file_is_the_same_as_commas(tmp_path: Path) -> None:
    path = config(tmp_path, f'secrets = ["{"a" * 32}", "{"b" * 32}"]')
    assert read_settings({}, path) == {"secrets": "a" * 32 + "," + "b" * 32}


@pytest.mark.parametrize(
    "name",
    [
        "CACHE_NODE_SERVICE_HOST",
        "CACHE_NODE_SERVICE_PORT_ADMIN",
        "CACHE_NODE_PORT",
        "CACHE_NODE_PORT_4455_TCP_ADDR",
    ],
)
def test_what_kubernetes_injects_is_ignored(name: str) -> None:
    assert read_settings({name: "tcp://10.0.0.1:4455"}) == {}


@pytest.mark.parametrize("name", ["CACHE_NODE_SERVICE", "CACHE_NODE_PORTS", "CACHE_NODE_", "CACHE_NODE_memory_bytes"])
def test_what_only_looks_like_it_is_refused(name: str) -> None:
    assert name in refusal({name: CREDENTIAL})


def test_kubernetes_names_in_a_file_are_nobodys_but_the_authors(tmp_path: Path) -> None:
    assert "'port'" in refusal({}, config(tmp_path, "port = 4455"))


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("CACHE_NODE_MEMRY_BYTES", "CACHE_NODE_MEMORY_BYTES"),
        ("CACHE_NODE_SECRET", "CACHE_NODE_SECRETS"),
        ("CACHE_NODE_memory_bytes", "CACHE_NODE_MEMORY_BYTES"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_one(name: str, suggested: str) -> None:
    message = refusal({name: CREDENTIAL})
    assert repr(name) in message
    assert message.endswith(f"did you mean {suggested}?")


def test_an_unknown_variable_like_no_other_is_named_alone() -> None:
    assert refusal({"CACHE_NODE_QQQQQQ": "1"}) == "'CACHE_NODE_QQQQQQ' is not a setting of this version"


@pytest.mark.parametrize("name", ["memry_bytes", "CACHE_NODE_MEMORY_BYTES", "Memory_Bytes"])
def test_an_unknown_name_in_a_file_is_named_with_the_nearest_known_one(tmp_path: Path, name: str) -> None:
    message = refusal({}, config(tmp_path, f'{name} = "{CREDENTIAL}"'))
    assert repr(name) in message
    assert message.endswith("did you mean memory_bytes?")


@pytest.mark.parametrize("name", ["SOURCES", "CORS_ORIGINS", "POSTGRES_URL", "RELAY_SOURCE_URL"])
def test_settings_of_later_versions_are_refused(tmp_path: Path, name: str) -> None:
    expected = f"CACHE_NODE_{name} is not in this version: unset it"
    assert refusal({f"CACHE_NODE_{name}": CREDENTIAL}) == expected
    assert refusal({}, config(tmp_path, f'{name.lower()} = "{CREDENTIAL}"')) == expected


def test_no_sources_and_no_cors_origins_are_what_this_version_has(tmp_path: Path) -> None:
    assert read_settings({"CACHE_NODE_SOURCES": "", "CACHE_NODE_CORS_ORIGINS": ""}) == {}
    assert read_settings({}, config(tmp_path, "sources = []\ncors_origins = []")) == {}


@pytest.mark.parametrize("name", ["CACHE_NODE_POSTGRES_URL", "CACHE_NODE_RELAY_SOURCE_URL"])
def test_an_empty_url_of_a_later_version_is_refused_too(name: str) -> None:
    assert name in refusal({name: ""})


def test_bytes_that_are_no_utf8_are_refused() -> None:
    assert refusal({"CACHE_NODE_REGION": "\udcff"}) == "CACHE_NODE_REGION must be valid UTF-8"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert str(missing) in refusal({}, missing)
    assert str(tmp_path) in refusal({}, tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'region = "\xe9"')
    assert str(latin) in refusal({}, latin)


@pytest.mark.parametrize(
    "text",
    [
        f"secrets = {CREDENTIAL}",
        f'secrets = "{CREDENTIAL}',
        f'secrets = "{CREDENTIAL}"\nsecrets = "{CREDENTIAL}"',
        f'secrets = """{CREDENTIAL}\n',
        f'admin_token = "{CREDENTIAL}\\q"',
        "memory_bytes = " + "9" * 5000,
        "secrets = " + "[" * 100_000,
    ],
)
def test_a_malformed_file_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    assert "is not valid TOML" in refusal({}, config(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "memory_bytes = true",
        "memory_bytes = 0x" + "f" * 5000,
        "entry_ttl_seconds = 2026-11-24",
        f'region = ["{CREDENTIAL}"]',
        f'redis_url = {{a = "{CREDENTIAL}"}}',
        f'secrets = ["{CREDENTIAL}", 5]',
        f'secrets = ["{CREDENTIAL}", ""]',
        f'secrets = ["{CREDENTIAL},{CREDENTIAL}"]',
    ],
)
def test_a_value_of_no_useful_type_is_refused(tmp_path: Path, text: str) -> None:
    assert f"CACHE_NODE_{text.split(' ')[0].upper()}" in refusal({}, config(tmp_path, text))


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://127.0.0.1:6379/",
        "redis://:p%40ss@redis.example:6379/5",
        "redis://user:pass@[::1]:6379/0",
        "rediss://redis.example:6380?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem&ssl_check_hostname=true&db=1",
        "rediss://redis.example?ssl_certfile=/c.pem&ssl_keyfile=/k.pem",
        "unix:///run/valkey.sock",
        "unix://user:pass@/run/valkey.sock?db=2",
        "unix:///run/valkey.sock?username=a&password=b",
    ],
)
def test_redis_urls_that_are_accepted_suit_the_library(url: str) -> None:
    assert check_redis_url("redis_url", url) == url
    pool = redis.ConnectionPool.from_url(url)
    pool.connection_class(**pool.connection_kwargs)


@pytest.mark.parametrize(
    "url",
    [
        "",
        5,
        CREDENTIAL,
        f"http://:{CREDENTIAL}@host",
        f"redis://:{CREDENTIAL}@",
        f"redis://:{CREDENTIAL}@:6379",
        f"redis://:{CREDENTIAL}@host:0",
        f"redis://:{CREDENTIAL}@host:99999",
        f"redis://:{CREDENTIAL}@host:port",
        f"redis://:{CREDENTIAL}@host/{CREDENTIAL}",
        f"redis://:{CREDENTIAL}@host/0 ",
        f"redis://:{CREDENTIAL}#@host",
        f"redis://host?{CREDENTIAL}=1",
        f"redis://host?db={CREDENTIAL}",
        "redis://host?socket_timeout=60",
        "redis://host?protocol=3",
        "redis://host?ssl_cert_reqs=none",
        "redis:///0",
        "redis:host",
        "redis://[::1",
        "unix://",
        "unix://run/valkey.sock",
        "unix:///run/valkey.sock?ssl_ca_certs=/ca.pem",
    ],
)
def test_other_redis_urls_are_refused_without_showing_them(url: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_redis_url("redis_url", url)
    assert str(caught.value).startswith("CACHE_NODE_REDIS_URL")
    assert CREDENTIAL not in str(caught.value)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_sentinel_and_cluster_are_not_in_this_version(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="not in this version") as caught:
        check_redis_url("redis_url", f"{scheme}://:{CREDENTIAL}@a:26379,b:26379/name")
    assert scheme in str(caught.value)
    assert CREDENTIAL not in str(caught.value)


def message(check: Callable[[str, str], str], url: str) -> str:
    """Empty when the URL was accepted."""
    try:
        check("redis_url", url)
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("check", [check_redis_url, check_http_url])
@given(text=st.text(max_size=40), tail=st.text(max_size=20))
def test_no_text_at_all_gets_a_credential_into_a_message(
    check: Callable[[str, str], str], text: str, tail: str
) -> None:
    for url in (text + CREDENTIAL + tail, f"redis://{text}:{CREDENTIAL}@{tail}", f"http://{text}{CREDENTIAL}{tail}"):
        assert CREDENTIAL not in message(check, url)


def test_credentials_are_left_out_for_people() -> None:
    assert without_credentials("redis://user:pass@host:6379/0?password=x") == "redis://host:6379/0"
    assert without_credentials("redis://[::1") == "…"


def test_numbers_are_bounded_and_finite() -> None:
    assert check_number("entry_ttl_seconds", "1e1", 0.1, 10) == 10.0
    assert check_whole_number("fence_ids", "1_000", 1, 1000) == 1000
    no_numbers: list[object] = ["", "x", "nan", "inf", "-1", "11", True, None, 10**400, [5]]
    for wrong in no_numbers:
        with pytest.raises(ConfigurationError, match=r"CACHE_NODE_ENTRY_TTL_SECONDS must be a number from 0\.1 to 10"):
            check_number("entry_ttl_seconds", wrong, 0.1, 10)
    no_whole_numbers: list[object] = ["", "1.0", 1.0, "0", "1001", False, "9" * 5000]
    for wrong in no_whole_numbers:
        with pytest.raises(ConfigurationError, match="CACHE_NODE_FENCE_IDS must be a whole number from 1 to 1000"):
            check_whole_number("fence_ids", wrong, 1, 1000)


def test_a_publisher_needs_a_redis_url_and_has_defaults() -> None:
    with pytest.raises(ConfigurationError, match=r"^CACHE_NODE_REDIS_URL is required"):
        publisher_settings({})
    settings = publisher_settings({"CACHE_NODE_REDIS_URL": "redis://host"})
    assert settings == PublisherSettings("redis://host", "cache-node", 2.0, 1_000_000, None)


def test_arguments_of_a_publisher_win_over_variables_over_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, 'redis_url = "redis://file"\nkey_prefix = "file"\nfeed_events = 7\nadmin_token = "t"')
    environ = {"CACHE_NODE_KEY_PREFIX": "environment", "CACHE_NODE_MAX_STALENESS_SECONDS": "0.5"}
    settings = publisher_settings(environ, path, redis_url="redis://argument")
    assert settings == PublisherSettings("redis://argument", "environment", 0.5, 7, "t")
    assert publisher_settings(environ, path, key_prefix="argument").key_prefix == "argument"


def test_a_publisher_does_not_judge_what_it_does_not_read() -> None:
    publisher_settings({"CACHE_NODE_REDIS_URL": "redis://host", "CACHE_NODE_MEMORY_BYTES": "nonsense"})


def test_repr_of_publisher_settings_holds_no_credential() -> None:
    settings = PublisherSettings(f"redis://:{CREDENTIAL}@host", admin_token=CREDENTIAL)
    assert CREDENTIAL not in repr(settings)
