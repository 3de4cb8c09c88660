"""The whole of it: which checks are made of what, and that dead parts are told apart."""

from pathlib import Path

import pytest

from opusclip_mlops import doctor
from opusclip_mlops.errors import ConfigError
from tests.servers import free_port


def test_every_check_has_a_name_and_builds_on_one_before_it() -> None:
    """Names are `group.thing`, each once."""
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)
    for number, check in enumerate(doctor.CHECKS):
        assert check.name.count(".") == 1
        assert not check.after or check.after in names[:number]


def test_only_what_is_asked_for_is_told(tmp_path: Path) -> None:
    """A group, or one check; what it builds on is told where it failed."""
    found = doctor.diagnose(only=["journal", "machine.clock"], journal_dir=tmp_path / "journal")
    assert [one.check for one in found] == [
        "machine.clock", "journal.folder", "journal.room", "journal.leftovers",
    ]  # fmt: skip
    dead = f"http://127.0.0.1:{free_port()}"
    found = doctor.diagnose(only=["server.latency"], tracking_uri=dead)
    assert [(one.check, one.state) for one in found] == [
        ("server.reach", "failed"), ("server.latency", "skipped"),
    ]  # fmt: skip


def test_an_unknown_name_is_refused() -> None:
    """With those there are."""
    with pytest.raises(ConfigError, match="'lungs': choose from machine, journal, mlflow, server"):
        doctor.diagnose(only=["lungs"])


def test_a_bucket_must_be_one() -> None:
    """A folder, or a server, is none; nor is one without a name."""
    for wrong in ("/srv", "https://films", "s3://", "s3:///runs"):
        with pytest.raises(ConfigError, match=f"--artifacts '{wrong}' is not s3://BUCKET"):
            doctor.diagnose(artifacts=wrong)


def test_what_is_configured_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing is given; what is switched off is skipped."""
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("OPUSCLIP_USE_TENSORBOARD", "false")
    monkeypatch.setenv("OPUSCLIP_USE_WANDB", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/films.db")
    asked = ["journal.folder", "database.reach", "tensorboard", "wandb"]
    seen = {one.check: one for one in doctor.diagnose(only=asked)}
    assert str(tmp_path / "mine") in seen["journal.folder"].seen
    assert f"{tmp_path}/films.db" in seen["database.reach"].seen
    assert seen["tensorboard.writing"].state == "skipped"
    assert seen["wandb.login"].state == "skipped"


def test_everything_dead_is_told_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part fails for itself, no password is shown, and what builds on it is skipped."""
    port = free_port()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "films",
        "AWS_SECRET_ACCESS_KEY": "battery-staple",
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": "correct-horse-battery-staple-and-more-of-it",
    }.items():
        monkeypatch.setenv(name, value)
    found = doctor.diagnose(
        tracking_uri=f"http://me:correct-horse@127.0.0.1:{port}",
        registry_uri=f"http://me:correct-horse@127.0.0.1:{port}/registry",
        backend=f"postgresql://me:correct-horse@127.0.0.1:{port}/db",
        artifacts="s3://films",
    )
    assert not doctor.is_well(found)
    assert [one.check for one in found if one.state == "failed"] == [
        "server.reach", "registry.reach", "database.reach", "artifacts.bucket", "wandb.login",
    ]  # fmt: skip
    assert {"horse", "staple"} & set(f"{found}".replace("-", " ").split()) == set()
