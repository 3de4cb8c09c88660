"""The stub of W&B's server carries what the real client asks of it, and owns up to the rest."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import BIN
from tests.wandb_server import API_KEY, WandbServer, wandb_server

RUN = """
import math, os, sys, wandb
quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, init_timeout=10)
def begin(**fields):
    return wandb.init(project="clips", settings=quiet.model_copy(), reinit="create_new", **fields)
"""


def client(code: str, *, check: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run lines with the real client in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", RUN + code],
        env={**os.environ, **env}, check=check, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def sync(log: Path) -> None:
    """Send an offline run with W&B's own command, which must claim success."""
    done = subprocess.run(
        [str(BIN / "wandb"), "sync", str(log)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with wandb_server(tmp_path / "wandb_server") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def test_a_run_is_begun_gone_on_with_rewound_and_deleted(server: WandbServer) -> None:
    """Steps go on behind the last, even one that was not a number; a deleted id is not free."""
    client(
        "for part in range(2):\n"
        "    run = begin(id='r', resume='allow')\n"
        "    [run.log({'x': [math.nan, math.inf][part]}) for _ in range(5)]\n"
        "    run.finish()\n"
    )
    assert [row["_step"] for row in server.run("r")["history"]] == list(range(10))
    client("run = begin(resume_from='r?_step=3'); run.log({'x': 9}); run.finish(exit_code=1)")
    run = server.run("r")
    assert [row["_step"] for row in run["history"]] == [0, 1, 2, 3, 4]
    assert (run["state"], run["exitcode"]) == ("failed", 1)
    client("wandb.Api().run('team/clips/r').delete()")
    assert server.state()["runs"] == {}
    refused = client("begin(id='r')", check=False)
    assert "previously created and deleted" in refused.stderr


def test_what_was_logged_is_told_by_the_api(server: WandbServer) -> None:
    """Rows, config, state, artifacts with their files and aliases; no answer holds a bare NaN."""
    told = client(
        "run = begin(id='r', config={'a.b': 1}, notes='n', tags=['t'], group='g')\n"
        "run.log({'x': math.nan, 'y': 2**53 + 1, 'a.b/c': 0.5})\n"
        "one = wandb.Artifact('m', 'model', metadata={'k': 1})\n"
        "one.add_reference('s3://b/k', name='w', checksum=False)\n"
        "run.log_artifact(one, aliases=['best']).wait()\n"
        "run.finish()\n"
        "run = wandb.Api().run('team/clips/r')\n"
        "[row] = run.scan_history()\n"
        "assert run.history(pandas=False)[0]['x'] == row['x'] == 'NaN'\n"
        "assert (row['y'], row['a.b/c']) == (2**53 + 1, 0.5)\n"
        "assert (run.config, run.notes, run.tags) == ({'a.b': 1}, 'n', ['t'])\n"
        "assert (run.group, run.state) == ('g', 'finished')\n"
        "[found] = run.logged_artifacts()\n"
        "assert found.metadata == {'k': 1}\n"
        "assert found.manifest.entries['w'].ref == 's3://b/k'\n"
        "found.aliases.remove('best'); found.aliases.append('prod'); found.save()\n"
        "print(*sorted(wandb.Api().artifact('team/clips/m:prod').aliases))\n"
    )
    assert told.stdout.split()[-2:] == ["latest", "prod"]
    [artifact] = server.state()["artifacts"]
    assert {*artifact["aliases"]} == {"latest", "prod"}


def test_the_same_content_is_the_same_version(server: WandbServer) -> None:
    """An alias that is given again moves; what was logged before makes no new version."""
    client(
        "run = begin(id='r')\n"
        "for name, alias in (('a', 'best'), ('b', 'best'), ('a', 'prod')):\n"
        "    one = wandb.Artifact('m', 'model')\n"
        "    one.add_reference(f's3://b/{name}', name='w', checksum=False)\n"
        "    run.log_artifact(one, aliases=[alias]).wait()\n"
        "run.finish()\n"
    )
    first, second = server.state()["artifacts"]
    assert (first["versionIndex"], second["versionIndex"]) == (0, 1)
    assert "best" in second["aliases"]
    assert "best" not in first["aliases"]
    assert "prod" in first["aliases"]


def test_an_offline_run_is_synced(server: WandbServer, tmp_path: Path) -> None:
    """W&B's own command brings rows, config, media and artifacts to the stub."""
    client(
        "run = begin(id='r', mode='offline', config={'a': 'b'})\n"
        "[run.log({'x': i}) for i in range(30)]\n"
        "run.log({'page': wandb.Html('<p>')})\n"
        "run.finish()\n"
    )
    [log] = tmp_path.glob("wandb/offline-run-*-r/run-r.wandb")
    sync(log.parent)
    run = server.run("r")
    assert [row["_step"] for row in run["history"]] == list(range(31))
    assert (run["config"], run["state"]) == ({"a": "b"}, "finished")
    assert [name for name in run["files"] if name.endswith(".html")]


@pytest.mark.parametrize("kind", ["drop", "404"])
def test_a_sync_may_claim_a_success_that_is_none(
    server: WandbServer, tmp_path: Path, kind: str
) -> None:
    """The command ends with 0, and the server has no row: only reading back tells."""
    client("run = begin(id='r', mode='offline'); run.log({'x': 1}); run.finish()")
    [log] = tmp_path.glob("wandb/offline-run-*-r/run-r.wandb")
    server.fault(kind, "file_stream")
    sync(log.parent)
    assert server.met(kind) > 0
    assert server.run("r")["history"] == []


def test_what_it_was_told_outlives_the_server(server: WandbServer) -> None:
    """Stopped and started again it tells the same, on the same port."""
    client("run = begin(id='r'); run.log({'x': 1}); run.finish()")
    before, url = server.state(), server.url
    server.stop()
    assert not server.is_alive()
    server.start()
    assert (server.state(), server.url) == (before, url)
    client("[row] = wandb.Api().run('team/clips/r').scan_history()\nassert row['x'] == 1")


def test_a_wrong_key_is_refused(server: WandbServer) -> None:
    """Only its own key opens the stub."""
    refused = client("begin(id='r')", check=False, WANDB_API_KEY="0" * 40)
    assert refused.returncode != 0
    assert server.state()["runs"] == {}


def test_an_operation_without_an_answer_fails_the_test(tmp_path: Path) -> None:
    """A client that asks for more than the stub knows does not go on unnoticed."""
    with pytest.raises(AssertionError, match="no answer to these"):
        _meet_an_unknown_operation(tmp_path / "wandb_server")


def _meet_an_unknown_operation(folder: Path) -> None:
    with wandb_server(folder) as server:
        answer = asked(server, "query Unheard { of }")
        assert "Unheard" in answer["errors"][0]["message"]
        assert server.unknown_operations == ["Unheard"]


def asked(server: WandbServer, query: str) -> dict[str, list[dict[str, str]]]:
    """The stub's answer to a query."""
    key = base64.b64encode(f"api:{API_KEY}".encode()).decode()
    request = urllib.request.Request(
        f"{server.url}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Authorization": f"Basic {key}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def test_rows_of_one_offset_are_kept_once(server: WandbServer) -> None:
    """A request whose answer was lost is sent again, and lies over the first."""
    client(
        "run = begin(id='r')\n"
        "import urllib.request, json\n"
        "fault = {'kind': 'lost', 'path': 'file_stream', 'left': 2}\n"
        "url = os.environ['WANDB_BASE_URL'] + '/_control/fault'\n"
        "urllib.request.urlopen(urllib.request.Request(url, data=json.dumps(fault).encode()))\n"
        "[run.log({'x': i}) for i in range(10)]\n"
        "run.finish()\n"
    )
    assert server.met("lost") == 2
    assert [row["x"] for row in server.run("r")["history"]] == list(range(10))
