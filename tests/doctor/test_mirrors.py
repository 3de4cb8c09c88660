"""TensorBoard's folder and W&B's login as the doctor sees them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opusclip_mlops.doctor import mirrors
from opusclip_mlops.doctor.findings import Subject, Told
from tests.doctor.answering import Said, answering
from tests.servers import free_port
from tests.wandb_server import API_KEY, WandbServer, wandb_server

Make = Callable[..., Subject]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbServer]:
    """A stub of W&B's server."""
    with wandb_server(tmp_path_factory.mktemp("wandb") / "server") as server:
        yield server


def test_an_event_comes_back(subject: Make, tmp_path: Path) -> None:
    """In the folder, or where it would be made; nothing stays there."""
    found = mirrors.tensorboard(subject(tensorboard_dir=str(tmp_path / "runs")))
    assert (found.state, found.seen) == ("ok", f"an event written in {tmp_path}/runs comes back")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_folder_that_takes_no_event(subject: Make, tmp_path: Path) -> None:
    """Below a file there is none; switched off, there is nothing to look at."""
    (tmp_path / "runs").write_text("")
    found = mirrors.tensorboard(subject(tensorboard_dir=str(tmp_path / "runs")))
    assert found.seen == f"{tmp_path}/runs cannot be written: Not a directory"
    assert "OPUSCLIP_TENSORBOARD_DIR" in found.todo
    assert mirrors.tensorboard(subject()).state == "skipped"


def test_the_modes_of_wandb(subject: Make, tmp_path: Path) -> None:
    """Disabled there is nothing to see; offline is a note with where the logs go."""
    assert mirrors.wandb_client(subject()).state == "skipped"
    offline = mirrors.wandb_client(subject(wandb_mode="offline", wandb_dir=str(tmp_path)))
    assert offline.state == "note"
    assert f"{tmp_path}/wandb/offline-run-*" in offline.seen
    online = mirrors.wandb_client(subject(wandb_mode="online", wandb_dir=str(tmp_path)))
    assert online.state == "ok"
    assert mirrors.wandb_login(subject(wandb_mode="offline")).state == "skipped"


def test_a_key_that_the_server_knows(
    subject: Make, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user is told, and where the key comes from, but not the key."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    found = mirrors.wandb_login(subject(wandb_mode="online"))
    assert (found.state, found.seen) == ("ok", "127.0.0.1 knows tester, by WANDB_API_KEY")
    monkeypatch.delenv("WANDB_API_KEY")
    keys = Path("~/.netrc").expanduser()
    keys.write_text(f"machine 127.0.0.1 login user password {API_KEY}\n")
    keys.chmod(0o644)
    with pytest.raises(Told) as told:
        mirrors.wandb_login(subject(wandb_mode="online"))
    assert told.value.finding.todo.startswith("chmod 600 ~/.netrc")
    keys.chmod(0o600)
    assert mirrors.wandb_login(subject(wandb_mode="online")).seen.endswith("by ~/.netrc")


def test_a_key_that_the_server_does_not_know(
    subject: Make, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, without the key; so it does without any."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    missing = mirrors.wandb_login(subject(wandb_mode="online"))
    assert (missing.state, missing.seen) == ("failed", "no key for 127.0.0.1")
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery-staple")
    found = mirrors.wandb_login(subject(wandb_mode="online"))
    assert found.seen == "127.0.0.1 does not know the key in WANDB_API_KEY"
    assert "staple" not in f"{found}"


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (Said(500), "127.0.0.1 answers 500"),
        (Said(200, "<html>"), "127.0.0.1 is not a W&B server"),
        (Said(200, "[]"), "127.0.0.1 is not a W&B server"),
        (Said(200, '{"data": {"viewer": null}}'), "127.0.0.1 does not know the key in"),
    ],
)
def test_what_is_no_wandb(
    subject: Make, monkeypatch: pytest.MonkeyPatch, said: Said, seen: str
) -> None:
    """It fails in one line."""
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with answering({"graphql": said}) as uri:
        monkeypatch.setenv("WANDB_BASE_URL", uri)
        found = mirrors.wandb_login(subject(wandb_mode="online"))
    assert found.state == "failed"
    assert found.seen.startswith(seen)


def test_a_wandb_that_is_dead(subject: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there."""
    port = free_port()
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    found = mirrors.wandb_login(subject(wandb_mode="online"))
    assert (found.state, found.seen) == ("failed", f"nothing listens on 127.0.0.1:{port}")
