"""Webhooks of a whole server: a stage that a stock client moves is told, whoever is killed."""

import os
import signal
import warnings
from pathlib import Path

import click
import mlflow.cli
import pytest
from mlflow import MlflowClient

from opusclip_mlops import announcing, cli
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import builders
from tests.journeys import store, wait_until
from tests.promoters import NAME, make_model
from tests.receivers import Receiver, settings
from tests.server.guarding import guarded_server


def transition(client: MlflowClient, version: int, stage: str) -> None:
    """As the UI and any client move a version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        client.transition_model_version_stage(NAME, str(version), stage)


def test_a_stage_transition_is_told_though_the_server_was_killed(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill -9 it is told by the next server, unasked, under the same id."""
    path = settings(tmp_path / "settings", receiver.url)
    monkeypatch.setenv("OPUSCLIP_WEBHOOKS", str(path))
    with guarded_server(tmp_path) as (url, server):
        client = MlflowClient(url)
        make_model(client)
        transition(client, 1, "Staging")
        wait_until(lambda: receiver.numbers == [1])
        receiver.codes += [500] * 1_000
        transition(client, 2, "Staging")
        wait_until(lambda: len(receiver.got) > 1)
        os.killpg(server.pid, signal.SIGKILL)
    receiver.codes.clear()
    ids, seen = {one.id for one in receiver.got}, len(receiver.got)
    with guarded_server(tmp_path) as (url, _):
        wait_until(lambda: len(receiver.got) > seen)
        found = wait_until_told(MlflowClient(url))
    assert {one.id for one in receiver.got} == ids
    assert receiver.numbers == [1, *[2] * (len(receiver.got) - 1)]
    assert all(one.is_signed() for one in receiver.got)
    data = receiver.got[-1].content["data"]
    assert (data["model"], data["version"], data["to_stage"]) == (NAME, 2, "Staging")
    assert (found.told, found.waiting, found.failed) == (2, 0, ())


def wait_until_told(client: MlflowClient) -> announcing.Delivery:
    """How far the one webhook is, once nothing waits."""
    wait_until(lambda: not any(one.waiting for one in announcing.deliveries(client=client)))
    (found,) = announcing.deliveries(client=client)
    return found


def test_settings_that_are_not_understood_keep_a_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that starts it opens the store first, and says the line; a client does not."""
    path = settings(tmp_path / "settings", "ftp://x/y")
    monkeypatch.setenv("OPUSCLIP_WEBHOOKS", str(path))
    uri = f"opusclip+{store(tmp_path)}"
    builders.tracking_store(uri, "./mlruns")
    with click.Context(mlflow.cli.server), pytest.raises(ConfigError, match=r"yaml:3: bot: url: "):
        builders.tracking_store(uri, "./mlruns")
    with click.Context(cli.opusclip.commands["server"]):
        builders.tracking_store(uri, "./mlruns")
