"""Serving: a registered generator behind MLflow's own HTTP server."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import mlflow
import pytest
import torch
from mlflow.pyfunc.model import PythonModelContext
from mlflow.tracking import MlflowClient

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.projects import serving
from opusclip_mlops.projects.models import ModelConfig, build_model
from opusclip_mlops.registry import register
from tests.servers import BIN, free_port, running

SIZE, FRAMES, FPS = 32, 6, 12.5
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def checkpoint(folder: Path, **config: Any) -> Path:
    """Write and seal a checkpoint of a small generator."""
    shape = ModelConfig(frames=FRAMES, size=SIZE, kind="video")
    torch.manual_seed(0)
    about = CheckpointMetadata(
        name=folder.name,
        step=1,
        epoch=0,
        config=config,
        model={"class": "VideoGenerationModel", "config": shape.to_dict()},
    )
    path = checkpoints.write_checkpoint(folder, build_model(shape), metadata=about)
    checkpoints.seal(path)
    return path


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tracking URI of a database in which a generator is registered twice."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    kept = client.create_experiment("clips", artifact_location=(folder / "kept").as_uri())
    run_id = client.create_run(kept).info.run_id
    path = checkpoint(folder / "epoch_0000-step_000001", fps=FPS)
    client.log_artifacts(run_id, str(path), f"checkpoints/{path.name}")
    for _ in range(2):
        register(
            run_id,
            name="clip-generator",
            checkpoint=path.name,
            python_model=serving.MODEL_FILE,
            input_example=serving.INPUT_EXAMPLE,
            signature=serving.SIGNATURE,
            pip_requirements=serving.pip_requirements(),
            tracking_uri=uri,
        )
    return uri


@pytest.fixture(scope="module")
def server(registered: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of version 2, served by the command that users type."""
    port = free_port()
    argv = [
        *(BIN / "mlflow", "models", "serve", "-m", "models:/clip-generator/2"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
    ]
    env = {"MLFLOW_TRACKING_URI": registered, "MLFLOW_DISABLE_TELEMETRY": "true"}
    url = f"http://127.0.0.1:{port}"
    with running(argv, env, f"{url}/ping", cwd=tmp_path_factory.mktemp("cwd")):
        yield url


def post(url: str, body: dict[str, Any] | str) -> tuple[int, dict[str, Any]]:
    """Send a request; gives status and answer."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    request = urllib.request.Request(
        f"{url}/invocations", data, {"Content-Type": "application/json"}
    )
    try:
        with LOCAL.open(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def generate(url: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips for some rows."""
    status, answer = post(url, {"dataframe_records": list(rows)})
    assert status == 200, answer
    clips: list[dict[str, Any]] = answer["predictions"]
    return clips


def test_a_prompt_is_answered_by_a_playable_clip(server: str) -> None:
    """The answer decodes to the frames, size and rate that were asked for, and says its version."""
    (clip,) = generate(server, {"prompt": "a red kite over the sea", "seed": 7, "frames": 9})
    assert {key: value for key, value in clip.items() if key != "video"} == {
        "seed": 7,
        "frames": 9,
        "fps": FPS,
        "model_version": 2,
        "content_type": "video/mp4",
    }
    with av.open(io.BytesIO(base64.b64decode(clip["video"]))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, float(stream.average_rate)) == (SIZE, SIZE, FPS)
        assert sum(1 for _ in container.decode(stream)) == 9


def test_the_same_request_gives_the_same_bytes(server: str) -> None:
    """Once more, as one of several rows and from many threads; another seed differs."""
    asked = {"prompt": "kite", "seed": 3, "frames": 4}
    other = {"prompt": "kite", "seed": 4, "frames": 4}
    (first,) = generate(server, asked)
    assert generate(server, other, asked)[1] == first
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda row: generate(server, row)[0], [asked, other] * 4))
    assert answers[::2] == [first] * 4
    assert answers[1]["video"] != first["video"]


def test_seed_and_frames_may_be_left_out(server: str) -> None:
    """The seed is then 0 and the length the trained one; an empty prompt is a prompt."""
    plain, given = (
        generate(server, row)[0]
        for row in ({"prompt": ""}, {"prompt": "", "seed": 0, "frames": FRAMES})
    )
    assert plain == given


def test_the_bounds_themselves_are_answered(server: str) -> None:
    """Eight rows, one frame, the longest prompt and the highest seed are inside."""
    rows = [{"prompt": "k" * 2_000, "seed": 2**63 - 1, "frames": 1}] * 8
    clips = generate(server, *rows)
    assert [clip["seed"] for clip in clips] == [2**63 - 1] * 8


def records(*rows: dict[str, Any]) -> dict[str, Any]:
    """A request in the form of records."""
    return {"dataframe_records": list(rows)}


REFUSED: dict[str, tuple[dict[str, Any] | str, str]] = {
    "no prompt": (records({"seed": 1}), "missing inputs ['prompt']"),
    "a number": (records({"prompt": 5}), "row 0: prompt must be text, not 5"),
    "null": (records({"prompt": "a"}, {"prompt": None}), "row 1: prompt must be text"),
    "too long": (records({"prompt": "k" * 2_001}), "at most 2,000 characters, it has 2,001"),
    "no frames": (records({"prompt": "a", "frames": 0}), "frames must be 1 to 256, not 0"),
    "negative": (records({"prompt": "a", "frames": -1}), "frames must be 1 to 256, not -1"),
    "one too many": (records({"prompt": "a", "frames": 257}), "must be 1 to 256, not 257"),
    "far too many": (records({"prompt": "a", "frames": 10_000}), "must be 1 to 256, not 10000"),
    "low seed": (records({"prompt": "a", "seed": -1}), "seed must be 0 to 9223372036854775807"),
    "high seed": (records({"prompt": "a", "seed": 2**63}), "seed must be 0 to"),
    "huge seed": (records({"prompt": "a", "seed": 10**30}), "column seed"),
    "a word": (records({"prompt": "a", "seed": "x"}), "column seed"),
    "no rows": (
        {"dataframe_split": {"columns": ["prompt"], "data": []}},
        "1 to 8 rows, this one has 0",
    ),
    "nine rows": (records(*[{"prompt": "a"}] * 9), "1 to 8 rows, this one has 9"),
    "no JSON": ("prompt", "JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_a_400_with_the_reason(server: str, case: str) -> None:
    """A bad request is the caller's fault, and the answer says which value and what is allowed."""
    body, reason = REFUSED[case]
    status, answer = post(server, body)
    assert status == 400
    assert reason in answer["message"]


def test_a_model_says_which_version_it_was_fetched_as(
    registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name and version it is known; by the logged model's id there is none to say."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered)
    client = MlflowClient()
    kept = client.get_experiment_by_name("clips").experiment_id
    by_id = client.search_logged_models([kept])[0].model_uri
    versions = [
        serving.registered_version(
            Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / str(number))))
        )
        for number, uri in enumerate(("models:/clip-generator/1", by_id))
    ]
    assert versions == [1, None]
    assert serving.registered_version(tmp_path) is None


def test_changed_weights_are_not_served(tmp_path: Path) -> None:
    """The weights are verified when the model is loaded."""
    path = checkpoint(tmp_path / "c", fps=FPS)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors was changed"):
        load(path)


def test_a_checkpoint_without_a_frame_rate_is_not_served(tmp_path: Path) -> None:
    """The error says what its config lacks."""
    with pytest.raises(CheckpointError, match='names no "fps"'):
        load(checkpoint(tmp_path / "c"))


def load(path: Path) -> serving.ClipGenerator:
    """A generator loaded from a checkpoint's folder."""
    generator = serving.ClipGenerator()
    generator.load_context(PythonModelContext({"checkpoint": str(path)}, None))
    return generator


def test_requirements_are_the_installed_releases() -> None:
    """Each is pinned, and none has a build suffix that no index knows."""
    requirements = dict(line.split("==") for line in serving.pip_requirements())
    assert requirements["torch"] == torch.__version__.partition("+")[0]
    assert requirements["mlflow"] == version("mlflow")
    assert "+" not in "".join(requirements.values())
