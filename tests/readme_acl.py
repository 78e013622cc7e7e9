"""The Redis user that README.md describes, with just the rights that a node needs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
USER = "cache-node"
PASSWORD = "a-password-of-the-operator"


def acl_of_the_readme() -> list[str]:
    """The words of the command that README.md gives, with a password."""
    command = re.search(r"^    ACL SETUSER .*\n(?:    .*\n)*", README.read_text(), re.MULTILINE)
    assert command
    return command[0].replace("PASSWORD", PASSWORD).split()


def url_of_the_user(port: int) -> str:
    return f"redis://{USER}:{PASSWORD}@127.0.0.1:{port}"
