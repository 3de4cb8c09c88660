"""Part `serving`: what a request for a clip costs more where OPUSCLIP_MONITOR is 1.

A registered clip generator is served twice by `mlflow models serve`, once watched and once not, and
both are asked for the same clips, in turns and each first in half of them. Told is the median of a
watched request, judged is the median of the pairs' ratios by the interval that holds 95 % of
bootstrap resamples. Beside it stands what the watching says of itself: the processor time that its
hooks take of a request, by the time of a request.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.processes import HERE, QUIET, end_tree

PART = "serving"
TURNS, QUICK_TURNS = 150, 10
WARM = 5
MOST = 1.01
MOST_SHARE = 0.01
UP_S = 180.0
FRAMES, SIZE_PX, FPS = 16, 64, 8.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_OWN = 'opusclip_serving_monitor_seconds_total{part="request"}'


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure a request beside the same one unwatched, and the hooks alone."""
    uri = _registered(folder)
    with ExitStack() as stack:
        numbers_port = _port()
        watched, plain = (
            stack.enter_context(_serving(folder / name, uri, env))
            for name, env in (("watched", _watching(numbers_port)), ("plain", {}))
        )
        turns = QUICK_TURNS if quick else TURNS
        times = _turns(watched, plain, turns)
        own_s = _number(numbers_port, _OWN) / (turns + WARM)
    return _figures(times, own_s)


def _figures(times: tuple[list[float], list[float]], own_s: float) -> list[Figure]:
    watched_s, plain_s = map(statistics.median, times)
    clip = f"a clip of {FRAMES} frames"
    return [
        Figure(part=PART, what=clip, ours=1000 * watched_s, unit="ms", peer="unwatched",
               theirs=1000 * plain_s, at_most=MOST,
               interval=interval_of(paired_ratios(*times))),
        Figure(part=PART, what=f"hooks, {clip}", ours=1e6 * own_s, unit="µs"),
        Figure(part=PART, what="hooks, share of a request", ours=own_s / plain_s, unit="",
               at_most=MOST_SHARE),
    ]  # fmt: skip


def _turns(watched: str, plain: str, turns: int) -> tuple[list[float], list[float]]:
    for seed in range(WARM):
        for url in (watched, plain):
            _asked(url, seed)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(_asked((watched, plain)[which], turn))
    return times


def _asked(url: str, seed: int) -> float:
    """Ask for a clip; gives the seconds until its answer is there."""
    row = {"prompt": "a red kite over the sea", "seed": seed, "frames": FRAMES}
    body = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(
        f"{url}/invocations", body, {"Content-Type": "application/json"}
    )
    began_s = time.perf_counter()
    with _LOCAL.open(request, timeout=UP_S) as answer:
        answer.read()
    return time.perf_counter() - began_s


def _number(port: int, name: str) -> float:
    with _LOCAL.open(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def _registered(folder: Path) -> str:
    import torch
    from mlflow import MlflowClient

    from opusclip_mlops import checkpoints
    from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
    from opusclip_mlops.projects import serving
    from opusclip_mlops.projects.models import ModelConfig, build_model
    from opusclip_mlops.registry import register

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("clips", artifact_location=(folder / "kept").as_uri())
    run_id = client.create_run(experiment).info.run_id
    shape = ModelConfig(frames=FRAMES, size=SIZE_PX, kind="video")
    about = CheckpointMetadata(
        name=checkpoint_name(0, 1),
        step=1,
        epoch=0,
        config={"fps": FPS},
        model={"class": "VideoGenerationModel", "config": shape.to_dict()},
    )
    torch.manual_seed(0)
    path = folder / about.name
    checkpoints.seal(checkpoints.write_checkpoint(path, build_model(shape), metadata=about))
    client.log_artifacts(run_id, str(path), f"checkpoints/{about.name}")
    given: dict[str, Any] = {
        "python_model": serving.MODEL_FILE,
        "input_example": serving.INPUT_EXAMPLE,
        "signature": serving.SIGNATURE,
        "pip_requirements": serving.pip_requirements(),
    }
    register(run_id, name="clips", checkpoint=about.name, tracking_uri=uri, **given)
    return uri


def _watching(port: int) -> dict[str, str]:
    return {"OPUSCLIP_MONITOR": "1", "OPUSCLIP_MONITOR_PORT": str(port)}


@contextmanager
def _serving(folder: Path, uri: str, env: Mapping[str, str]) -> Iterator[str]:
    """The URL of the generator while it is served from a folder of its own."""
    folder.mkdir()
    port = _port()
    words = ("models", "serve", "-m", "models:/clips/1", "--env-manager", "local")
    log = (folder / "server.log").open("wb")
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("mlflow")), *words, "--port", str(port)],
        cwd=folder,
        env={**os.environ, **QUIET, "MLFLOW_TRACKING_URI": uri, "PATH": _path(), **env,
             "PYTHONPATH": str(HERE.parent)},
        stdout=log,
        stderr=log,
    )  # fmt: skip
    try:
        _wait_until_up(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        end_tree(server.pid)
        server.wait()
        log.close()


def _wait_until_up(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + UP_S
    while server.poll() is None and time.monotonic() < deadline_s:
        try:
            with _LOCAL.open(f"{url}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"no answer of {url}/ping within {UP_S:.0f} s")


def _path() -> str:
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"


def _port() -> int:
    import socket

    while True:
        port = 10_000 + random.randrange(20_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
