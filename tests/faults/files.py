"""Compares the clips and checkpoints of a run with those its trainers logged: none torn."""

import tempfile
from pathlib import Path

from opusclip_mlops import checkpoints
from opusclip_mlops.video import read_clip
from tests.faults.ledger import Call
from tests.faults.site import Site
from tests.reading import event_reader, rows_of_wandb

MAKE_CLIP = """\
import numpy as np

def clip(number, side=32, frames=8):
    return np.full((frames, side, side, 3), number % 256, np.uint8)

def log_clip(tracker, key, step, **shape):
    with ledger.call("video", step, {"key": key}):
        tracker.log_video(clip(step, **shape), key, step)
"""
"""Code of a trainer's script that logs clips of 8 frames, 32 pixels wide, and notes it."""

MAKE_CHECKPOINT = """\
import torch

def save(tracker, step, width=8):
    model = torch.nn.Linear(width, width)
    with ledger.call("checkpoint", step, {}):
        tracker.save_checkpoint(model, torch.optim.Adam(model.parameters()), step=step)
"""
"""Code of a trainer's script that saves checkpoints and notes it."""


def assert_clips_whole(site: Site, key: str) -> None:
    """The clips of a key stand whole in all three places: each that returned, and none torn."""
    calls = [c for c in site.calls if c.kind == "video" and c.values["key"] == key]
    run = site.run()
    mirror_id = run.data.tags["opusclip.mirror_id"]
    with tempfile.TemporaryDirectory() as folder:
        stored = site.client.list_artifacts(run.info.run_id, f"media/video/{key}")
        for one in stored:
            path = site.client.download_artifacts(run.info.run_id, one.path, folder)
            assert read_clip(path).frames.shape == (8, 32, 32, 3)
    steps = sorted(int(Path(one.path).name.split("_")[1].split("-")[0]) for one in stored)
    assert steps == _allowed(calls, steps)
    images = event_reader(site.tensorboard_dir / mirror_id).Images(key)
    assert [image.step for image in images] == steps
    rows = [row for row in rows_of_wandb(site.wandb_dir, mirror_id) if key in row]
    assert [row["global_step"] for row in rows] == steps
    for row in rows:
        [file] = site.wandb_dir.glob(f"wandb/*run-*-{mirror_id}*/files/{row[key]['path']}")
        assert read_clip(file).frames.shape == (8, 32, 32, 3)


def assert_checkpoints_whole(site: Site) -> None:
    """Each checkpoint that returned stands in MLflow with the checksums it was saved with."""
    calls = [call for call in site.calls if call.kind == "checkpoint"]
    run_id = site.run().info.run_id
    stored = [Path(one.path).name for one in site.client.list_artifacts(run_id, "checkpoints")]
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for name in stored:
            path = site.client.download_artifacts(run_id, f"checkpoints/{name}", folder)
            steps.append(checkpoints.verify(Path(path)).step)
    assert sorted(steps) == _allowed(calls, steps)


def _allowed(calls: list[Call], steps: list[int]) -> list[int]:
    """The steps of all calls that returned, and of those under way that are there."""
    return sorted(call.step for call in calls if call.returned or call.step in steps)
