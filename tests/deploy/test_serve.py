"""The servers' figures: of all workers together, and none of a server that does not answer."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from tests.deploy.programs import DEPLOY, script
from tests.servers import free_port


def counted(folder: Path, worker: int, requests: int) -> None:
    """What a worker with this id has counted, as it keeps it."""
    key = mmap_key("requests_total", "requests_total", (), (), "Requests")
    file = MmapedDict(str(folder / f"counter_{worker}.db"))
    file.write_value(key, float(requests), 0.0)
    file.close()


def asked(figures: object) -> tuple[str, str]:
    """The status and the text of an answer."""
    said: list[str] = []
    body = figures({}, lambda status, _: said.append(status))  # type: ignore[operator]
    return said[0], b"".join(body).decode()


def test_workers_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers' requests are one sum."""
    serve = script("serve")
    counted(tmp_path, 1, 30)
    counted(tmp_path, 2, 12)
    figures = serve.Figures(str(tmp_path), "http://127.0.0.1:1/health")
    monkeypatch.setattr(figures, "_is_healthy", lambda: True)
    status, text = asked(figures)
    assert status == "200 OK"
    assert "requests_total 42.0" in text


def test_a_server_that_does_not_answer_has_no_figures(tmp_path: Path) -> None:
    """So that Prometheus takes it for down, whatever this process does."""
    figures = script("serve").Figures(str(tmp_path), f"http://127.0.0.1:{free_port()}/health")
    assert asked(figures) == ("503 Service Unavailable", "the server does not answer\n")


def test_what_ended_processes_counted_is_gone_at_a_start(tmp_path: Path) -> None:
    """Or the folder would grow with every start."""
    counted(tmp_path, 1, 30)
    script("serve")._empty(tmp_path)
    assert list(tmp_path.glob("*.db")) == []


def test_it_ends_as_the_server_ends(tmp_path: Path) -> None:
    """With its exit code; a signal is handed on, and told as a shell tells it."""
    words = ["--metrics-port", str(free_port()), "--metrics-address", "127.0.0.1"]
    words += ["--metrics-dir", str(tmp_path / "figures"), "sh", "-c"]
    line = [sys.executable, str(DEPLOY / "serve.py"), *words]
    assert subprocess.run([*line, "exit 7"], check=False).returncode == 7
    begun = tmp_path / "begun"
    server = subprocess.Popen([*line, f"touch {begun}; exec sleep 600"])
    while not begun.exists():
        assert server.poll() is None
    server.terminate()
    assert server.wait(60) == 128 + 15
