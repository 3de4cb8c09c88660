"""Begins the parts of a topology, each from the files that deploy/compose.yaml gives it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg2
import yaml

from tests import databases, object_store
from tests.deploy.programs import CONFIG, DEPLOY, door_values, filled_in, program
from tests.deploy.topology import BUCKET, EXPERIMENT, SERVERS, Part, Topology, local
from tests.servers import free_port

_PORTS = (
    "https", "http", "postgres", "server-1", "server-2", "server-1-metrics", "server-2-metrics",
    "mirror", "tensorboard", "prometheus", "blackbox", "grafana",
)  # fmt: skip


@contextlib.contextmanager
def running_topology(folder: Path) -> Iterator[Topology]:
    """Everything up, with the accounts of mirror and Prometheus made; all ended afterwards."""
    for name in ("nginx", "prometheus", "prometheus-blackbox-exporter"):
        program(name)
    with object_store.object_store() as store:
        there = Topology(folder, store)
        there.ports = {name: free_port() for name in _PORTS}
        # Its own figures are asked for where compose.yaml asks for them.
        store.down()
        store.ports["metricsPort"] = free_port()
        store.up()
        try:
            _make(there)
            yield there
        finally:
            for part in reversed(there.parts.values()):
                part.end()
            shutil.rmtree(_cluster(there), ignore_errors=True)


def _make(there: Topology) -> None:
    _secrets(there)
    _postgres(there)
    _run_job(there, "bucket", BUCKET)
    # Side by side, as replicas come up.
    for number, workers in ((1, 2), (2, 1)):
        _server(there, f"server-{number}", workers)
    for name in SERVERS:
        there.parts[name]._start()
    _nginx(there)
    _tensorboard(there)
    _blackbox(there)
    for name in (*SERVERS, "nginx"):
        there.parts[name].begin()
    _run_job(there, "accounts", "mirror")
    _prometheus(there)
    _mirror(there)
    for part in there.parts.values():
        part.begin()


def _secrets(there: Topology) -> None:
    subprocess.run(
        [DEPLOY / "secrets.sh", "127.0.0.1", there.secrets], check=True, capture_output=True
    )
    given = {
        "postgres_password": databases.PASSWORD,
        "storage_key": object_store.KEY,
        "storage_secret": object_store.SECRET,
    }
    for name, value in given.items():
        (there.secrets / name).chmod(0o600)
        (there.secrets / name).write_text(value)


def _cluster(there: Topology) -> Path:
    # Not in the test's own folder: that is closed to the user the server runs as.
    return Path(tempfile.gettempdir()) / f"postgres-of-topology-{there.ports['postgres']}"


def _postgres(there: Topology) -> None:
    folder = _cluster(there)
    folder.mkdir(mode=0o755)
    programs = databases._programs(folder)
    databases._make_cluster(programs, folder)
    port = str(there.ports["postgres"])
    argv = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", port, "-k", ""]

    def is_up() -> bool:
        try:
            there.connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    # With what makes a killed server lose nothing: these are PostgreSQL's own settings.
    _part(there, "postgres", argv, {}, is_up, user=databases._user()).begin()
    with contextlib.closing(there.connect("postgres")) as connection:
        connection.autocommit = True
        connection.cursor().execute("create database opusclip template template0")


def _part(
    there: Topology,
    name: str,
    argv: Sequence[str | Path],
    env: dict[str, str],
    is_up: Callable[[], bool],
    *,
    user: str | None = None,
) -> Part:
    there.parts[name] = Part(name, argv, env, is_up, there.folder, user)
    return there.parts[name]


def storage_env(there: Topology) -> dict[str, str]:
    """How a part reaches the object store."""
    return {
        "MLFLOW_S3_ENDPOINT_URL": there.store.address,
        "AWS_ACCESS_KEY_ID_FILE": str(there.secrets / "storage_key"),
        "AWS_SECRET_ACCESS_KEY_FILE": str(there.secrets / "storage_secret"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
    }


def _run_job(there: Topology, *words: str) -> None:
    """One of the jobs that end, as compose.yaml starts it."""
    env = {
        **storage_env(there),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{there.ports['server-1']}",
        "OPUSCLIP_SECRETS": str(there.secrets),
    }
    line = [sys.executable, str(DEPLOY / "prepare.py"), *words]
    subprocess.run(line, env={**os.environ, **env}, check=True, capture_output=True, timeout=240)


def server_words(name: str) -> list[str]:
    """The command of a service of compose.yaml, with its variables filled in."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return [
        word.replace("${OPUSCLIP_BUCKET:-opusclip}", BUCKET)
        .replace("${OPUSCLIP_HOST:?say the name that people use}", "127.0.0.1")
        .replace("${OPUSCLIP_EXPERIMENT:-video-clips}", EXPERIMENT)
        for word in services[name]["command"]
    ]


def _settings() -> dict[str, str]:
    lines = (CONFIG / "opusclip.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def _server(there: Topology, name: str, workers: int) -> None:
    port, run = there.ports[name], there.folder / name
    run.mkdir()
    here = {
        "python": sys.executable,
        "/opt/opusclip/deploy/serve.py": str(DEPLOY / "serve.py"),
        "--metrics-port=9300": f"--metrics-port={there.ports[f'{name}-metrics']}",
        "--metrics-dir=/run/opusclip/metrics": f"--metrics-dir={run / 'metrics'}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=5000": f"--port={port}",
        "--workers=2": f"--workers={workers}",
        "--state=/run/opusclip/state": f"--state={run / 'state'}",
    }
    words = [here.get(word, word) for word in server_words(name) if "${" not in word]
    words += [f"--cors-allowed-origins={there.url}"]
    env = {
        **_settings(),
        **storage_env(there),
        "OPUSCLIP_BACKEND": f"postgresql://opusclip@127.0.0.1:{there.ports['postgres']}/opusclip",
        "PGPASSWORD_FILE": str(there.secrets / "postgres_password"),
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(there.secrets / "admin_password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": str(there.secrets / "session_key"),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY_FILE": str(there.secrets / "webhook_key"),
    }
    _part(there, name, words, env, lambda: local(f"http://127.0.0.1:{port}/health") == "OK")


def _nginx(there: Topology) -> None:
    folder = there.folder / "nginx"
    folder.mkdir()
    lines = [f"server 127.0.0.1:{there.ports[one]} max_fails=1 fail_timeout=5s;"
             for one in SERVERS]  # fmt: skip
    values = door_values(
        folder,
        OPUSCLIP_TLS_DIR=str(there.secrets),
        OPUSCLIP_TLS_LISTEN=f"127.0.0.1:{there.ports['https']}",
        OPUSCLIP_HTTP_LISTEN=f"127.0.0.1:{there.ports['http']}",
        OPUSCLIP_SERVERS=" ".join(lines),
        OPUSCLIP_TENSORBOARD=f"server 127.0.0.1:{there.ports['tensorboard']};",
        OPUSCLIP_GRAFANA=f"server 127.0.0.1:{there.ports['grafana']};",
    )
    config = folder / "nginx.conf"
    config.write_text(filled_in((CONFIG / "nginx.conf.template").read_text(), values))
    argv = [program("nginx"), "-c", config, "-g", _as_root("daemon off;")]
    _part(there, "nginx", argv, {}, lambda: there.get("/health")[0] in (200, 502))


def _as_root(settings: str) -> str:
    # Its workers are somebody else otherwise, whom the test's folder is closed to.
    return f"{settings} user root;" if os.geteuid() == 0 else settings


def _tensorboard(there: Topology) -> None:
    there.mirrors.mkdir()
    here = {
        "--logdir=/mirrors": f"--logdir={there.mirrors}",
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=6006": f"--port={there.ports['tensorboard']}",
    }
    words = [here.get(word, word) for word in server_words("tensorboard")]
    url = f"http://127.0.0.1:{there.ports['tensorboard']}/tensorboard/"
    _part(there, "tensorboard", words, {}, lambda: "TensorBoard" in local(url))


def _mirror(there: Topology) -> None:
    here = {
        "python": sys.executable,
        "/opt/opusclip/deploy/follower.py": str(DEPLOY / "follower.py"),
        "--port=9200": f"--port={there.ports['mirror']}",
        "--to=tensorboard:/mirrors": f"--to=tensorboard:{there.mirrors}",
    }
    words = [here.get(word, word) for word in server_words("mirror")]
    home = there.folder / "mirror-home"
    (home / ".mlflow").mkdir(parents=True)
    shutil.copy(there.secrets / "mirror_credentials", home / ".mlflow" / "credentials")
    env = {
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{there.ports['server-2']}",
        "OPUSCLIP_STATE_DIR": str(home / "state"),
    }
    url = f"http://127.0.0.1:{there.ports['mirror']}/metrics"
    _part(there, "mirror", [*words, "--address=127.0.0.1"], env, lambda: "opusclip" in local(url))


def _blackbox(there: Topology) -> None:
    address = f"127.0.0.1:{there.ports['blackbox']}"
    argv = [program("prometheus-blackbox-exporter"), f"--config.file={CONFIG / 'blackbox.yml'}",
            f"--web.listen-address={address}"]  # fmt: skip
    _part(there, "blackbox", argv, {}, lambda: "Blackbox" in local(f"http://{address}/"))


def _prometheus(there: Topology) -> None:
    folder = there.folder / "prometheus"
    (folder / "targets").mkdir(parents=True)
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(CONFIG / name, folder)
    prober = f"127.0.0.1:{there.ports['blackbox']}"
    probes = yaml.safe_load((CONFIG / "targets" / "probe.yml").read_text())
    for probe, target in zip(
        probes, (f"127.0.0.1:{there.ports['postgres']}", f"{there.url}/health"), strict=True
    ):
        probe["targets"], probe["labels"]["prober"] = [target], prober
    targets: dict[str, object] = {
        "probe": probes,
        "server": [{"targets": [f"127.0.0.1:{there.ports[f'{one}-metrics']}" for one in SERVERS]}],
        "mirror": [{"targets": [f"127.0.0.1:{there.ports['mirror']}"]}],
        "storage": [{"targets": [f"127.0.0.1:{there.store.ports['metricsPort']}"]}],
    }
    for name, content in targets.items():
        (folder / "targets" / f"{name}.yml").write_text(yaml.safe_dump(content))
    address = f"127.0.0.1:{there.ports['prometheus']}"
    argv = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    argv += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    _part(there, "prometheus", argv, {}, lambda: "Ready" in local(f"http://{address}/-/ready"))
