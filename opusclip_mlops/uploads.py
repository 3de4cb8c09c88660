"""Clips, panels' accounts, texts, insights …: records that become files of an MLflow run."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunTag

from opusclip_mlops import layout, media, origins, wall_measures
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.insight_uploads import InsightUploads
from opusclip_mlops.panels import title_of
from opusclip_mlops.records import Crash, Image, Insight, Samples, Table, Text, Video

Sendable = Video | Samples | Text | Image | Table | Insight | Crash
"""The records that become files of a run."""


class Uploads:
    """Sends the files of one run, under the same names each time."""

    def __init__(self, client: MlflowClient, run_id: str, folder: RunFolder) -> None:
        self._client = client
        self._run_id = run_id
        self._folder = folder
        self._sent: dict[str, str] = {}
        self._insights = InsightUploads(client, run_id, folder, upload=self._upload)

    def here(self, artifact: str) -> Path | None:
        """Where a clip that was sent lies on this machine, None where it does not."""
        name = self._sent.get(artifact)
        path = self._folder.media / name if name else None
        return path if path and path.exists() else None

    def send(self, record: Sendable) -> None:
        """Upload what a record is made of.

        Raises:
            VideoError: the clip or picture can't be read or encoded.
            RecordError: a file of the record is gone, or it holds what no file can.
            MlflowException, OSError, or another artifact store's own: it does not answer now.
        """
        match record:
            case Video():
                self._send_clip(record)
            case Samples():
                self._send_samples(record)
            case Text():
                path = layout.text_path(record.key, record.step, record.timestamp_ms, record.text)
                self._client.log_text(self._run_id, record.text, path)
            case Image():
                self._insights.send_picture(record)
            case Table():
                self._insights.send_table(record)
            case Insight():
                self._insights.send_insight(record)
            case Crash():
                self._send_report(record)

    def _send_report(self, record: Crash) -> None:
        """How a process died; of a file that is gone the others are sent."""
        for name, file in record.files.items():
            path = self._folder.media / Path(file).name
            if path.exists():
                self._upload(path, layout.crash_folder(record.session), Path(name).name)

    def _send_clip(self, record: Video) -> None:
        """The clip under media/video/, and moving in the stock image grid.

        MLflow's UI plays whatever lies under images/ by the name its own `log_image` gives.
        """
        name, folder = media.artifact_name(record), layout.clip_folder(record.key)
        clip = media.playable(self._folder, record)
        self._upload(clip, folder, name)
        self._sent[f"{folder}/{name}"] = clip.name
        mark = Path(name).stem[-8:]
        still = layout.image_stem(record.key, record.step, record.timestamp_ms, mark)
        self._upload(media.rendition(self._folder, record, "png"), layout.IMAGES, f"{still}.png")
        moving = media.rendition(self._folder, record, "webp")
        self._upload(moving, layout.IMAGES, f"{still}+compressed.webp")
        self._send_origin(record, name)
        self._client.log_batch(self._run_id, tags=[RunTag(layout.LOGGED_IMAGES_TAG, "True")])

    def _send_origin(self, record: Video, name: str) -> None:
        """Where a clip by itself comes from, to be listed: a panel's clips are in its account."""
        if origins.is_told(record.origin):
            about = {
                "format": 1,
                "key": record.key,
                "step": record.step,
                "clip": f"{layout.clip_folder(record.key)}/{name}",
                "origin": origins.completed(self._folder, record.origin),
            }
            path = layout.origin_path(record.step, Path(name).stem[-8:])
            self._client.log_text(self._run_id, json.dumps(about, indent=1), path)

    def _send_samples(self, record: Samples) -> None:
        account = self._account(record)
        # Of the record alone: what is found out on the way may differ the next time.
        logged = json.dumps(record.cells)
        path = layout.samples_path(account["title"], record.step, record.timestamp_ms, logged)
        self._client.log_text(self._run_id, json.dumps(account, indent=1), path)

    def _account(self, record: Samples) -> dict[str, Any]:
        """The samples of a panel at a step, with where each clip lies."""
        return {
            "format": 1,
            "title": title_of(record.panel["name"], record.panel["digest"]),
            "panel": record.panel,
            "run_id": self._run_id,
            "step": record.step,
            "timestamp_ms": record.timestamp_ms,
            "cells": {name: self._described(record, one) for name, one in record.cells.items()},
        }

    def _described(self, record: Samples, cell: dict[str, Any]) -> dict[str, Any]:
        others = {name: value for name, value in cell.items() if name != "file"}
        others["scores"] = {key: _plain(value) for key, value in cell["scores"].items()}
        if cell["file"]:
            clip = Video(
                record.timestamp_ms, record.step, cell["key"], cell["file"], 0.0,
                codec=cell.get("codec", "h264"),
            )  # fmt: skip
            folder = layout.clip_folder(clip.key)
            others["clip"] = f"{folder}/{media.artifact_name(clip)}"
            if path := self.here(others["clip"]):
                others["size_bytes"] = path.stat().st_size
                others["measured"] = wall_measures.described(path)
        return {**others, "origin": origins.completed(self._folder, cell["origin"])}

    def _upload(self, path: Path, artifact_folder: str, name: str) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder.media) as folder:
            linked = Path(folder, name)
            with contextlib.suppress(OSError):
                os.link(path, linked)
            if not linked.exists():
                # A file system without hard links, such as exFAT or CIFS.
                shutil.copyfile(path, linked)
            self._client.log_artifact(self._run_id, str(linked), artifact_folder)


def _plain(value: float) -> float | str:
    """A number that JSON can hold; others as "nan", "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)
