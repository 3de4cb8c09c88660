"""`opusclip server`, with its figures for Prometheus on a port that only the inside reaches.

serve.py --metrics-port 9300 --metrics-dir DIR opusclip server …

MLflow's own /metrics is for administrators where users have passwords, and Prometheus is none. A
server that does not answer has no figures either: 503. Ends as the server ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

HEALTH_S = 4.0


def main() -> None:
    """Run the server, answer Prometheus, and end with the server's exit code."""
    asked = _arguments()
    _empty(Path(asked.metrics_dir))
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": asked.metrics_dir}
    server = subprocess.Popen([*asked.command, f"--expose-prometheus={asked.metrics_dir}"], env=env)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda sent, _: server.send_signal(sent))
    port = next((one.partition("=")[2] for one in asked.command if one.startswith("--port=")), 5000)
    figures = Figures(asked.metrics_dir, f"http://127.0.0.1:{port}/health")
    threading.Thread(
        target=_answer, args=(asked.metrics_address, asked.metrics_port, figures), daemon=True
    ).start()
    code = server.wait()
    # As a shell says that a signal ended it.
    sys.exit(code if code >= 0 else 128 - code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics-port", type=int, default=9300)
    parser.add_argument("--metrics-address", default="0.0.0.0")
    parser.add_argument("--metrics-dir", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


def _empty(folder: Path) -> None:
    """What processes that ended have counted goes, or the folder grows with every start."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()


class Figures:
    """What all workers of a server have counted, together, as long as it answers."""

    def __init__(self, folder: str, health: str) -> None:
        self._folder = folder
        self._health = health
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __call__(self, _: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if not self._is_healthy():
            start("503 Service Unavailable", [("Content-Type", "text/plain")])
            return [b"the server does not answer\n"]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)
        start("200 OK", [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")])
        return [generate_latest(registry)]

    def _is_healthy(self) -> bool:
        try:
            with self._opener.open(self._health, timeout=HEALTH_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _answer(address: str, port: int, figures: Figures) -> None:
    make_server(address, port, figures).serve_forever()


if __name__ == "__main__":
    main()
