"""A guard's removal: what its file says, and how it gets into a copy of the checkout."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

GUARANTEE = "Guarantee: "

_HEADER = re.compile(r"^(Guard|Race|Test): (.+)$", re.MULTILINE)
_TARGET = re.compile(r"^\+\+\+ b/(\S+)$", re.MULTILINE)
_COPIED = ("cache_node", "tests", "pyproject.toml")


class PatchError(Exception):
    """The patch is malformed, or does not apply to this checkout."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One `*.patch`; `targets` are the files that `diff` changes, below `cache_node/`."""

    path: Path
    guard: str
    race: str
    test: str
    targets: tuple[str, ...]
    diff: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


def read_patch(path: Path) -> Patch:
    """Raises PatchError, saying what is missing, for a file without the three header lines and a diff."""
    text = path.read_text()
    head, mark, diff = text.partition("\n--- a/")
    headers = dict(_HEADER.findall(head + "\n"))
    for name in ("Guard", "Race", "Test"):
        if name not in headers:
            raise PatchError(f"has no line `{name}: …` before its diff")
    targets = tuple(_TARGET.findall(mark + diff))
    if not targets or not all(target.startswith("cache_node/") for target in targets):
        raise PatchError("must change files below cache_node/, and nothing else")
    return Patch(path, headers["Guard"], headers["Race"], headers["Test"].strip(), targets, (mark + diff).lstrip("\n"))


def copy_checkout(checkout: Path, folder: Path) -> Path:
    """What a test needs of the checkout, compiled files included (they carry their source's date)."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in _COPIED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=_ignored)
        elif source.exists():
            shutil.copy2(source, copy / name)
    return copy


def _ignored(folder: str, names: Iterable[str]) -> set[str]:
    return {name for name in names if name.endswith(".patch")}


def apply_patch(patch: Patch, copy: Path) -> None:
    """Without fuzz: every line of context must be as it was.  Raises PatchError where one is not."""
    words = _git_apply(patch, copy)
    if words:
        raise PatchError(f"does not apply any more and must be renewed: {words}")
    for target in patch.targets:
        source = copy / target
        for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"):
            compiled.unlink()


def why_stale(patch: Patch, checkout: Path) -> str:
    """What git says against applying it there, which is not done; empty while it fits."""
    return _git_apply(patch, checkout, "--check")


def renew_patch(patch: Patch, copy: Path) -> bool:
    """Write the patch anew if only its context has changed; False where it is as it should be.

    Raises PatchError if the guard itself has changed: then somebody must look for it.
    """
    if not why_stale(patch, copy):
        return False
    before = {target: (copy / target).read_text() for target in patch.targets}
    words = _git_apply(patch, copy, "-C0")
    if words:
        raise PatchError(f"removes what is not there any more: {words}")
    diff = "".join(
        line
        for target, text in before.items()
        for line in difflib.unified_diff(
            text.splitlines(True), (copy / target).read_text().splitlines(True), f"a/{target}", f"b/{target}", n=2
        )
    )
    patch.path.write_text(f"Guard: {patch.guard}\nRace: {patch.race}\nTest: {patch.test}\n{diff}")
    return True


def _git_apply(patch: Patch, copy: Path, *options: str) -> str:
    """What git says against it; empty when it is done."""
    # Not even a repository around the copy may have a say in where the paths begin.
    environ = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = ["git", "apply", "--whitespace=nowarn", *options, "-"]
    done = subprocess.run(command, cwd=copy, env=environ, input=patch.diff, capture_output=True, text=True, check=False)
    return " ".join(done.stderr.split()) or "git failed" if done.returncode else ""
