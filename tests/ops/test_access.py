from __future__ import annotations

import pytest

from cache_node.ops.access import is_loopback_host


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:4456", "127.8.9.10:80", "127.255.255.255"),
        *("localhost", "localhost:4456", "LOCALHOST", "[::1]", "[::1]:4456", "[0:0:0:0:0:0:0:1]:1"),
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert is_loopback_host(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", ":", ":4456", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example:4456", "evil.localhost"),
        *("0.0.0.1", "10.0.0.1", "128.0.0.1", "192.168.1.1:4456", "169.254.169.254", "0127.0.0.1", "127.1", "0x7f.1"),
        *("::1", "[::]", "[::1", "::1]", "[::2]:1", "[fe80::1]", "[::1]x", "[::1]:", "[::1]:port", "127.0.0.1:"),
        *("127.0.0.1:123456", "localhost:1:2", "localhost@evil.example", "evil@localhost", "localhost ", " localhost"),
        *("localhost,evil.example", "localhost/evil", "localhost\n", "127.0.0.1\r\nHost: evil", "１２７.0.0.1"),
    ],
)
def test_whatever_else_is_none(host: str) -> None:
    assert not is_loopback_host(host)
