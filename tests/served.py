"""A registered model that is served by `mlflow models serve` and watched, and how it is asked."""

import contextlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from prometheus_client.parser import text_string_to_metric_families

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.registry import register
from tests.servers import BIN, free_port, running

DEADLINE_S = 90
NAME = "answerer"
# What a prompt asks for: a clip of that kind, or a fault, or an answer as soon as a file is there.
ANSWERER = """
import base64, time
from dataclasses import dataclass
from pathlib import Path
import mlflow.models, mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from opusclip_mlops.video import encode_mp4

class Answerer(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [self.answer(row["prompt"], row["size"]) for row in model_input.to_dict("records")]

    def answer(self, prompt, size):
        if prompt == "fault":
            raise ZeroDivisionError("a fault")
        if prompt == "refused":
            raise MlflowException("no such prompt", error_code=INVALID_PARAMETER_VALUE)
        if prompt == "unsendable":
            return {"answer": object()}
        if prompt.startswith("hold "):
            while not Path(prompt[5:]).exists():
                time.sleep(0.01)
        if prompt not in ("black", "noise"):
            return {"frames": 0, "video": ""}
        draw = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
        clip = draw * (prompt == "noise")
        return {"frames": 12, "video": base64.b64encode(encode_mp4(clip, fps=8)).decode()}

mlflow.models.set_model(Answerer())
"""
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def usual(count: int = 400) -> pd.DataFrame:
    """Rows as they are usual: a few prompts, sizes about 100."""
    sizes = np.random.default_rng(1).normal(100, 10, count)
    return pd.DataFrame({"prompt": ["noise", "plain"] * (count // 2), "size": sizes})


def registered(folder: Path, *, reference: pd.DataFrame | None = None) -> str:
    """The tracking URI of a database in which the answerer is registered as version 1."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    kept = client.create_experiment("clips", artifact_location=(folder / "kept").as_uri())
    run_id = client.create_run(kept).info.run_id
    about = CheckpointMetadata(name=checkpoint_name(0, 1), step=1, epoch=0)
    layer = torch.nn.Linear(1, 1)
    path = checkpoints.write_checkpoint(folder / about.name, layer, metadata=about)
    checkpoints.seal(path)
    client.log_artifacts(run_id, str(path), f"checkpoints/{about.name}")
    model = folder / "answerer.py"
    model.write_text(ANSWERER)
    inputs = Schema([ColSpec("string", "prompt"), ColSpec("double", "size")])
    register(
        run_id,
        name=NAME,
        checkpoint=about.name,
        python_model=model,
        input_example=usual(2),
        signature=ModelSignature(inputs=inputs),
        pip_requirements=["mlflow"],
        input_reference=reference,
        tracking_uri=uri,
    )
    return uri


@dataclass(frozen=True)
class Served:
    """The answerer while it is served."""

    url: str
    uri: str
    port: int
    process: "Popen[bytes]"

    def ask(self, *rows: Mapping[str, Any], body: str | None = None) -> tuple[int, Any]:
        """Send rows, or something else; gives status and answer."""
        text = json.dumps({"dataframe_records": rows}) if body is None else body
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/invocations", text.encode(), headers)
        try:
            with _LOCAL.open(request, timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask_at_once(self, count: int, row: Mapping[str, Any]) -> list[int]:
        """Send a row so many times from as many threads; gives the statuses."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.ask(row)[0], range(count)))

    def numbers(self, *, port: int | None = None) -> dict[str, float]:
        """What Prometheus is told: `errors_total{kind="timeout"}` and its value."""
        with _LOCAL.open(f"http://127.0.0.1:{port or self.port}/metrics", timeout=30) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {
            named(sample.name, sample.labels): sample.value
            for family in families
            for sample in family.samples
        }

    def settled(self) -> dict[str, float]:
        """The numbers once nothing is in flight: an answer is counted when it has been sent."""
        eventually(lambda: self.numbers()["requests_in_flight"] == 0, "requests in flight")
        return self.numbers()

    def runs(self) -> list[Run]:
        """The monitoring runs in MLflow, the newest first."""
        client = MlflowClient(self.uri, self.uri)
        found = client.get_experiment_by_name(f"{NAME} monitoring")
        return list(client.search_runs([found.experiment_id])) if found else []

    def run(self, *, after: Collection[str] = ()) -> Run:
        """The newest monitoring run but those, once it is there with its tags."""

        def found() -> list[Run]:
            own = [one for one in self.runs() if one.info.run_id not in after]
            return [one for one in own if "opusclip.serving.pid" in one.data.tags]

        eventually(lambda: bool(found()), "a monitoring run")
        return found()[0]

    def sum_of(self, run: Run, key: str) -> float:
        """All points of a key added up."""
        history = MlflowClient(self.uri, self.uri).get_metric_history(run.info.run_id, key)
        return sum(point.value for point in history)


def named(name: str, labels: Mapping[str, str]) -> str:
    """A sample's name as Prometheus writes it, without ours in front."""
    told = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return name.removeprefix("opusclip_serving_") + (f"{{{told}}}" if told else "")


@contextlib.contextmanager
def serving(uri: str, folder: Path, *options: str, **env: str) -> Iterator[Served]:
    """Serve version 1 with the command that users type, watched unless `env` says otherwise."""
    port, numbers = free_port(), free_port()
    argv = [
        *(BIN / "mlflow", "models", "serve", "-m", f"models:/{NAME}/1"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
        *options,
    ]
    watched = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OPUSCLIP_MONITOR": "1",
        "OPUSCLIP_MONITOR_PORT": str(numbers),
        "OPUSCLIP_MONITOR_INTERVAL_S": "0.5",
        "OPUSCLIP_MONITOR_CHECKS_SHARE": "1",
        "OPUSCLIP_SYSTEM_METRICS": "false",
        "OPUSCLIP_DRAIN_TIMEOUT_S": "5",
        "OPUSCLIP_JOURNAL_DIR": str(folder / "journal"),
        "HOME": os.environ.get("HOME", str(folder)),
    }
    url = f"http://127.0.0.1:{port}"
    with running(argv, watched | env, f"{url}/ping", cwd=folder) as process:
        yield Served(url, uri, numbers, process)


def eventually(is_so: Callable[[], bool], what: str) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: It is not, within a generous time.
    """
    end_s = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > end_s:
            raise TimeoutError(what)
        time.sleep(0.1)
