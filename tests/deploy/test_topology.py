"""The team's whole installation, as processes: what is logged arrives, whoever dies comes back.

From the very files of deploy/: PostgreSQL, an S3 server, two MLflow servers behind nginx with TLS
and users, the follower, TensorBoard, Prometheus.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser

from opusclip_mlops.event_files import event_files
from tests.browser import SETTINGS, STAGES
from tests.databases import postgres
from tests.deploy.copies import docker, hashes, rows_of, run_script, run_sql
from tests.deploy.topology import BUCKET, EXPERIMENT, Topology
from tests.deploy.topology_parts import running_topology
from tests.projects.commands import TINY, film
from tests.servers import BIN, free_port, running
from tests.test_registry_ui import CONFIRM, MENU

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]

ADA, GRACE = ("ada", "a-trainer-of-films"), ("grace", "reads-and-promotes")
ROUNDS = 10 if os.environ.get("OPUSCLIP_SOAK") else 1
CLOSED = (
    "/", "/api/2.0/mlflow/experiments/search?max_results=5", "/tensorboard/", "/metrics",
    "/ajax-api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow-artifacts/artifacts",
    "/tensorboard/data/runs", "/get-artifact?path=x&run_uuid=y",
)  # fmt: skip
WRITER = """
import sys, time
from pathlib import Path
from opusclip_mlops import ExperimentTracker, TrackingConfig
stop, told = Path(sys.argv[1]), Path(sys.argv[2])
config = TrackingConfig(
    experiment_name="video-clips", use_tensorboard=False, wandb_mode="disabled",
    system_metrics=False, journal_dir=sys.argv[3], drain_timeout_s=300,
)
with ExperimentTracker(config) as tracker:
    step = 0
    while not stop.exists():
        tracker.log_metrics({"load/a": step / 3, "load/b": -step}, step)
        step += 1
        if step % 40 == 0:
            tracker.log_text(f"at {step}", f"said/{step}")
        told.write_text(f"{step} {tracker.local_id}")
        time.sleep(0.05)
    run_id = tracker.run_id
print(run_id, step)
"""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    """Everything up, with two people: ada trains, grace promotes."""
    with running_topology(tmp_path_factory.mktemp("team")) as there:
        for name, password in (ADA, GRACE):
            make_user(there, name, password)
        yield there


@pytest.fixture(scope="module")
def trained(team: Topology) -> dict[str, str]:
    """A small real training, from a machine that has only the address and a password."""
    folder = team.folder / "laptop"
    data = film(folder)
    asked = {**TINY, "--data": str(data), "--experiment": EXPERIMENT}
    words = [word for pair in asked.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-m", "opusclip_mlops.projects.train", *words],
        cwd=folder,
        env=person_env(team, *ADA, folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with contextlib.closing(team.connect()) as connection, connection.cursor() as rows:
        rows.execute(
            "select run_uuid from runs join experiments using (experiment_id)"
            " where experiments.name = %s",
            [EXPERIMENT],
        )
        [(run_id,)] = rows.fetchall()
    return {"run_id": run_id, "said": done.stdout}


def person_env(team: Topology, name: str, password: str, folder: Path) -> dict[str, str]:
    """The environment of somebody's own machine."""
    own = {"HOME": str(folder), "WANDB_MODE": "disabled", "OPUSCLIP_DRAIN_TIMEOUT_S": "120"}
    return {**os.environ, **team.client_env(name, password), **own}


def make_user(team: Topology, name: str, password: str) -> None:
    """As the administrator makes an account."""
    code = "import sys; from mlflow.server.auth.client import AuthServiceClient as Users;"
    code += "Users(sys.argv[1]).create_user(sys.argv[2], sys.argv[3])"
    env = team.client_env("admin", team.secret("admin_password"))
    subprocess.run(
        [sys.executable, "-c", code, team.url, name, password],
        env={**os.environ, **env},
        check=True,
        capture_output=True,
    )


def until(is_so: Callable[[], object], *, within_s: float = 150) -> None:
    """Wait until something is so."""
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.2)


def test_nobody_comes_in_without_a_password(team: Topology) -> None:
    """Pages, REST, artifacts, TensorBoard: 401; the servers' figures are not behind the door."""
    for path in CLOSED:
        wanted = 404 if path == "/metrics" else 401
        assert team.get(path)[0] == wanted, path
        assert team.get(path, user="ada", password="guessed")[0] == wanted, path
    assert team.get("/api/2.0/mlflow/experiments/search?max_results=5", user=ADA[0],
                    password=ADA[1])[0] == 200  # fmt: skip
    assert team.get("/_user", user=ADA[0], password=ADA[1])[0] == 404


def test_a_training_arrives_through_the_door(team: Topology, trained: dict[str, str]) -> None:
    """Points in PostgreSQL, files in the bucket, none of them by a key of the trainer's own."""
    with contextlib.closing(team.connect()) as connection, connection.cursor() as rows:
        rows.execute("select count(*) from metrics where run_uuid = %s", [trained["run_id"]])
        assert rows.fetchall()[0][0] > 20
    keys = team.store.keys(bucket=BUCKET)
    assert any(f"{trained['run_id']}/artifacts/checkpoints/" in key for key in keys)


@pytest.mark.usefixtures("trained")
def test_the_mirror_follows_and_is_seen_with_a_password(team: Topology) -> None:
    """The run is in TensorBoard without its trainer having written there."""
    folder = team.mirrors / EXPERIMENT
    until(lambda: folder.is_dir() and any(event_files(one) for one in folder.iterdir()))

    def names() -> str:
        return team.get("/tensorboard/data/runs", user=ADA[0], password=ADA[1])[1]

    until(lambda: EXPERIMENT in names())


@pytest.mark.usefixtures("trained")
def test_a_version_is_promoted_in_the_browser_and_served(
    team: Topology, browser: Browser, tmp_path: Path
) -> None:
    """Who may puts it into Staging by clicks; `mlflow models serve` answers from there."""
    allow(team, *GRACE)
    page = browser.new_context(
        viewport={"width": 1400, "height": 1100},
        ignore_https_errors=True,
        http_credentials={"username": GRACE[0], "password": GRACE[1]},
    ).new_page()
    kept = json.dumps({**SETTINGS, **STAGES})
    page.add_init_script(f"for (const [k, v] of Object.entries({kept})) localStorage.setItem(k, v)")
    page.goto(f"{team.url}/#/models/clip-generator/versions/1", wait_until="domcontentloaded")
    page.locator(MENU).click(timeout=120_000)
    page.locator("li[data-menu-id$='-transition-to-Staging']").click()
    page.get_by_role("dialog").locator("textarea[name=comment]").fill("looks good")
    page.locator(CONFIRM).click()
    page.locator(MENU, has_text="Staging").wait_for(timeout=60_000)
    port = free_port()
    argv = [BIN / "mlflow", "models", "serve", "-m", "models:/clip-generator/Staging",
            "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    env = {**team.client_env(*GRACE), "HOME": str(tmp_path)}
    with running(argv, env, f"http://127.0.0.1:{port}/ping", cwd=tmp_path, deadline_s=240):
        answer = invoked(port)
    assert answer["predictions"][0]["content_type"] == "video/mp4"


def allow(team: Topology, name: str, _: str) -> None:
    """As ada, who made the model, lets somebody promote it."""
    code = "import sys; from mlflow.server.auth.client import AuthServiceClient as Users;"
    code += "Users(sys.argv[1]).grant_user_permission("
    code += "sys.argv[2], 'registered_model', 'clip-generator', 'EDIT')"
    subprocess.run(
        [sys.executable, "-c", code, team.url, name],
        env={**os.environ, **team.client_env(*ADA)},
        check=True,
        capture_output=True,
    )


def invoked(port: int) -> dict[str, list[dict[str, str]]]:
    """What a served model answers."""
    import urllib.request

    body = {"dataframe_records": [{"prompt": "a red kite", "seed": 7, "frames": 4}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return dict(json.load(answer))


def test_a_large_checkpoint_passes_the_door_and_a_large_request_does_not(
    team: Topology, trained: dict[str, str]
) -> None:
    """40 MB of a file arrive as they are; 40 MB to any other route are refused."""
    content = os.urandom(1 << 20) * 40
    here = requests.Session()
    here.auth, here.verify, here.trust_env = ADA, str(team.secrets / "tls.crt"), False
    keys = team.store.keys(bucket=BUCKET)
    root = next(key for key in keys if trained["run_id"] in key).split(trained["run_id"])[0]
    name = f"{root.removeprefix('artifacts/')}{trained['run_id']}/artifacts/large.bin"
    file = f"{team.url}/api/2.0/mlflow-artifacts/artifacts/{name}"
    assert here.put(file, data=content, timeout=120).status_code == 200
    assert here.get(file, timeout=120).content == content
    other = f"{team.url}/api/2.0/mlflow/runs/log-batch"
    assert here.post(other, data=content, timeout=120).status_code == 413


def test_prometheus_sees_every_part(team: Topology) -> None:
    """Servers, store, follower and probes are up; what two workers counted is counted once."""

    def up() -> dict[str, int]:
        found = team.asked("sum by (job) (up)")
        return {one["metric"]["job"]: int(one["value"][1]) for one in found}

    until(lambda: up() == {"server": 2, "storage": 1, "mirror": 1, "probe": 2})
    for query in (
        "sum(mlflow_http_request_total) > 0",
        "sum by (le) (mlflow_http_request_duration_seconds_bucket) >= 0",
        "probe_success{service='postgres'} == 1",
        "probe_success{service='door'} == 1",
        "probe_ssl_earliest_cert_expiry > time() + 300 * 86400",
        "opusclip_mirror_points_total > 0",
        "opusclip_mirror_behind_seconds >= 0",
        "SeaweedFS_volumeServer_resource{type='free'} > 0",
        "SeaweedFS_volumeServer_resource{type='all'} > 0",
    ):
        until(lambda query=query: team.asked(query))
    assert team.asked("ALERTS{alertstate='firing'}") == []


def test_whoever_dies_under_load_comes_back_and_nothing_is_lost(team: Topology) -> None:
    """Each part is killed in turn while a run logs: every point is there once, nobody got in."""
    stop, told = team.folder / "stop", team.folder / "told"
    with knocking(team) as got_in, writing(team, stop, told) as writer:
        until(told.exists)
        for name in ("server-1", "postgres", "mirror", "server-2", "prometheus", "nginx") * ROUNDS:
            logged = steps(told)
            team.parts[name].kill()
            until(lambda logged=logged: steps(told) > logged + 20)
            team.parts[name].begin()
        team.store.down()
        logged = steps(told)
        until(lambda: steps(told) > logged + 20)
        team.store.up()
        stop.touch()
        printed, _ = writer.communicate(timeout=400)
    run_id, count = printed.decode().split()
    assert writer.returncode == 0
    assert got_in == []
    assert stored(team, run_id, "load/a") == [(step, step / 3) for step in range(int(count))]
    assert stored(team, run_id, "load/b") == [(step, -step) for step in range(int(count))]
    said = team.store.keys(bucket=BUCKET)
    texts = [key for key in said if f"{run_id}/artifacts/text/" in key]
    assert len(texts) == int(count) // 40
    until(lambda: mirrored(team, run_id))
    assert team.parts["nginx"].said().count("[emerg]") == 0


def steps(told: Path) -> int:
    """How many steps the writer's calls have returned for."""
    text = told.read_text()
    return int(text.split()[0]) if " " in text else 0


@contextlib.contextmanager
def writing(team: Topology, stop: Path, told: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run that logs all the time."""
    folder = team.folder / "writer"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, stop, told, folder / "journals"],
        cwd=folder,
        env=person_env(team, *ADA, folder),
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def knocking(team: Topology) -> Iterator[list[str]]:
    """Tries the door all the time, without a password and with wrong ones; gives what opened."""
    opened: list[str] = []
    is_over = threading.Event()

    def knock() -> None:
        while not is_over.wait(0.1):
            for path in CLOSED:
                for name, password in (("", ""), ("ada", "guessed"), ("admin", "")):
                    status, _ = team.get(path, user=name, password=password)
                    if status not in (0, 401, 404, 500, 502, 503, 504):
                        opened.append(f"{status} {path} {name}")

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield opened
    finally:
        is_over.set()
        thread.join()


def stored(team: Topology, run_id: str, key: str) -> list[tuple[int, float]]:
    """All points of a metric, as they stand in the database."""
    with contextlib.closing(team.connect()) as connection, connection.cursor() as rows:
        rows.execute(
            "select step, value from metrics where run_uuid = %s and key = %s order by step, value",
            [run_id, key],
        )
        return list(rows.fetchall())


def mirrored(team: Topology, run_id: str) -> bool:
    """Whether TensorBoard has the run just as MLflow has it."""
    done = subprocess.run(
        [BIN / "opusclip", "verify", run_id, f"--to=tensorboard:{team.mirrors}"],
        env=person_env(team, *ADA, team.folder / "writer"),
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_a_backup_makes_empty_stores_equal(team: Topology, tmp_path: Path) -> None:
    """backup.sh, then restore.sh elsewhere: the same rows in every table, the same objects."""
    backup = tmp_path / "backup"
    run_script("backup.sh", backup, docker(team, tmp_path / "here", team.ports["postgres"], BUCKET))
    assert (backup / "database.dump").stat().st_mode & 0o077 == 0
    with postgres() as uri:
        port = int(uri.rpartition(":")[2].partition("/")[0])
        env = docker(team, tmp_path / "there", port, "restored")
        run_sql(port, "create database opusclip template template0")
        run_script("restore.sh", backup, env)
        assert rows_of(port) == rows_of(team.ports["postgres"])
    assert hashes(team, "restored") == hashes(team, BUCKET)
    assert len(hashes(team, BUCKET)) > 5
