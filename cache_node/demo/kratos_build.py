"""Builds the real Kratos from its Go module, once: the binary is kept and found again by what went into it.

Needs Go on the PATH and the Go module proxy at the first build; takes one to five minutes on two cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path

from cache_node.errors import CacheNodeError

KRATOS_VERSION = "v1.3.1"

_PACKAGE = "github.com/ory/kratos"
_FLAGS = ["-buildvcs=false", "-trimpath", f"-ldflags=-s -w -X {_PACKAGE}/driver/config.Version={KRATOS_VERSION}"]
_PROGRESS_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.5

Progress = Callable[[str], None]


def print_progress(line: str) -> None:
    """Write one line to stderr, where progress goes."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def default_build_directory() -> Path:
    """`.kratos` in the current directory if that is a checkout, else the user's cache directory."""
    here = Path.cwd()
    if (here / ".git").exists() or (here / "pyproject.toml").exists():
        return here / ".kratos"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cache-node"


def find_go() -> str:
    """The path of the `go` command; CacheNodeError when there is none."""
    go = shutil.which("go")
    if go is None:
        raise CacheNodeError(
            "a real Kratos is built with Go, which is missing: install Go 1.26 or newer, put it on PATH"
        )
    return go


def main() -> int:
    """Build it if need be, for those who need it later; returns the exit status.  SIGTERM ends the build."""
    try:
        asyncio.run(_build_until_sigterm())
    except CacheNodeError as error:
        print_progress(str(error))
    except asyncio.CancelledError:
        print_progress("building Kratos: ended")
    else:
        return 0
    return 1


async def build_kratos(
    build_directory: Path | None = None,
    *,
    progress: Progress = print_progress,
    timeout_seconds: float = 1800.0,
) -> Path:
    """Return the path of a Kratos binary in `build_directory`, building it there if it is not there yet.

    Several processes may ask at once: one builds, the others wait for it.  Raises CacheNodeError with one line when Go
    is missing, the build fails or `timeout_seconds` pass; the whole output is then in `build.log` in that directory.
    """
    directory = (build_directory or default_build_directory()).absolute()
    binary = directory / f"kratos-{KRATOS_VERSION}-{_fingerprint()}"
    if binary.exists():
        return binary
    go = find_go()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        async with asyncio.timeout(timeout_seconds), _locked(directory / "build.lock", progress):
            if not binary.exists():
                await _build(go, directory, binary, progress)
    except TimeoutError:
        raise CacheNodeError(
            f"building Kratos took more than {timeout_seconds:.0f} s: see {directory / 'build.log'}"
        ) from None
    return binary


async def _build_until_sigterm() -> None:
    building = asyncio.ensure_future(build_kratos())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, building.cancel)
    await building


def _module_files() -> dict[str, bytes]:
    package = files("cache_node.demo") / "kratos"
    return {name: (package / name).read_bytes() for name in ("go.mod", "go.sum")}


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((_FLAGS, platform.system(), platform.machine())).encode())
    for content in _module_files().values():
        digest.update(content)
    return digest.hexdigest()[:12]


@contextlib.asynccontextmanager
async def _locked(path: Path, progress: Progress) -> AsyncIterator[None]:
    """Hold an exclusive lock between processes; it goes with the process that holds it."""
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    progress("another process is building Kratos: waiting for it")
                told = True
                await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield


async def _build(go: str, directory: Path, binary: Path, progress: Progress) -> None:
    module = directory / "module"
    module.mkdir(exist_ok=True)
    for name, content in _module_files().items():
        (module / name).write_bytes(content)
    progress(f"building Kratos {KRATOS_VERSION} with Go, once: one to five minutes on two cores")
    unfinished = binary.with_suffix(f".{os.getpid()}")
    process = await asyncio.create_subprocess_exec(
        *(go, "build", "-v", "-mod=readonly", *_FLAGS, "-o", str(unfinished), _PACKAGE),
        cwd=module,
        env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,  # not a session: Linux may weigh sessions against each other, whatever the niceness in one
    )
    started = time.monotonic()
    last = ""
    try:
        if process.stderr is not None:  # it is: it was asked for
            last = await _follow(process.stderr, directory / "build.log", progress)
        status = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # go starts compilers; after a good end there is nobody left
    if status != 0:
        unfinished.unlink(missing_ok=True)
        raise CacheNodeError(f"building Kratos failed: {last}; all of it is in {directory / 'build.log'}")
    unfinished.replace(binary)
    progress(f"built Kratos {KRATOS_VERSION} in {time.monotonic() - started:.0f} s")


async def _follow(output: asyncio.StreamReader, log: Path, progress: Progress) -> str:
    """Keep go's output, tell now and then how far it is, and return the line that says best why it failed."""
    started = reported = time.monotonic()
    downloads = packages = 0
    others: deque[str] = deque(maxlen=1)
    with log.open("wb") as file:
        async for raw in output:
            file.write(raw)
            line = raw.decode(errors="replace").strip()
            if line.startswith("go: downloading "):
                downloads += 1
            elif " " not in line:
                packages += 1  # -v names each package as it is compiled
            else:
                others.append(line)
            if time.monotonic() - reported >= _PROGRESS_SECONDS:
                reported = time.monotonic()
                seconds = reported - started
                progress(f"building Kratos: {downloads} modules fetched, {packages} packages compiled, {seconds:.0f} s")
    return others[0] if others else "no reason given"


if __name__ == "__main__":
    sys.exit(main())
