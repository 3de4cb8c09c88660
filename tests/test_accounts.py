"""What MLflow holds about samples, read for many runs at a time."""

import json
import threading
import time
from pathlib import Path

import pytest
from mlflow.entities import FileInfo, Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.accounts import (
    MOST_AT_ONCE,
    Account,
    Unread,
    accounts_of,
    at_once,
    has_clips,
    listed,
)
from opusclip_mlops.layout import origin_path, samples_path
from opusclip_mlops.samples import SourceClip
from tests.mirrored import Place

A = "a" * 64
KITE = SourceClip(uri="/films/kite.mp4", sha256=A)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def told(place: Place, run: Run, path: str, about: object) -> None:
    place.client.log_text(run.info.run_id, json.dumps(about), path)


def test_every_sample_of_a_run_has_an_account(place: Place) -> None:
    """Cells of panels that have a clip, and clips by themselves; no other file is read."""
    run = place.run()
    origin = {"prompt": "a kite", "seed": 0, "checkpoint": "c", "weights_sha256": A}
    cells = {"000": {"key": "k0", "clip": "v.mp4", "origin": origin}, "001": {"key": "k1"}}
    for step in (1, 2):
        account = {"title": "p-1", "step": step, "cells": cells}
        told(place, run, samples_path("p-1", step, 5), account)
    single = {"key": "cut", "step": 7, "clip": "w.mp4", "origin": {"sources": [KITE.to_dict()]}}
    told(place, run, origin_path(7, "0123abcd"), single)
    for path in ("panels/p-1.html", "panels/p-1/notes.txt", "origins/a/b.json", "notes.json"):
        told(place, run, path, "hello")
    found, unread = accounts_of(run, place.uri)
    run_id = run.info.run_id
    of_panel = [
        Account(
            run_id=run_id, key="k0", step=step, panel="p-1", cell="000", clip="v.mp4",
            prompt="a kite", seed=0, checkpoint="c", weights_sha256=A,
        )
        for step in (1, 2)
    ]  # fmt: skip
    alone = Account(run_id=run_id, key="cut", step=7, clip="w.mp4", sources=(KITE,))
    assert found == [*of_panel, alone]
    assert unread == []


def test_a_run_without_samples_has_none(place: Place) -> None:
    """Nor is it asked for any: its tags say that it has no pictures."""
    run = place.run()
    assert accounts_of(run, place.uri) == ([], [])
    assert not has_clips(run)
    place.client.set_tag(run.info.run_id, "mlflow.loggedImages", "True")
    assert has_clips(place.again(run))


class Listing(ArtifactRepository):
    """A server that lists whatever it likes."""

    def __init__(self, *entries: FileInfo) -> None:
        self._entries = entries

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return list(self._entries)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        raise NotImplementedError

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        raise NotImplementedError


def test_what_a_server_lists_elsewhere_is_told_and_not_followed() -> None:
    """Its names become paths on this machine."""
    good = FileInfo("checkpoints/c", is_dir=True, file_size=None)
    bad = ["checkpoints/..", "checkpoints/a/../../../x", "../x", "/x"]
    unread: list[Unread] = []
    server = Listing(*(FileInfo(path, is_dir=True, file_size=None) for path in bad), good)
    assert listed("r", server, "checkpoints", unread) == [good]
    assert sorted(one.path for one in unread) == sorted(bad)


def test_a_number_that_is_none_makes_no_account(place: Place) -> None:
    """JSON of Python has infinities."""
    run = place.run()
    origin = {"seed": float("inf")}
    told(place, run, origin_path(1, "0123abcd"), {"key": "a", "step": 1, "origin": origin})
    told(place, run, origin_path(2, "0123abcd"), {"key": "a", "step": 1e999, "origin": {}})
    found, unread = accounts_of(run, place.uri)
    assert found == []
    assert len(unread) == 2


def test_questions_are_asked_some_at_a_time_and_answered_in_order() -> None:
    """As many as may be at once wait for each other here."""
    together = threading.Barrier(MOST_AT_ONCE, timeout=30)

    def ask(number: int) -> int:
        together.wait()
        return -number

    assert list(at_once(ask, range(2 * MOST_AT_ONCE))) == [-n for n in range(2 * MOST_AT_ONCE)]


def test_after_a_fault_nothing_more_is_asked() -> None:
    """A store that is gone is not asked for thousands of files."""
    asked = []

    def ask(number: int) -> None:
        asked.append(number)
        time.sleep(0.01)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(at_once(ask, range(10_000)))
    assert len(asked) < 1000
