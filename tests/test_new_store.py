"""Tests of a database file that several processes find new."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.replay import Places
from opusclip_mlops.verifying import verify


def test_a_comparison_leaves_a_new_store_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of a command that find no tables make them once, and the store is of use."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/new.db"
    folders = [f"tensorboard:{name}" for name in "abc"]
    found = verify("d0b7143b" * 4, to=folders, places=Places(tracking_uri=uri))
    assert {one.outcome for one in found} == {"gone"}
    assert MlflowClient(uri).search_experiments()
