"""The sink of alerts, between a real journal, MLflow, W&B's log and a receiver of webhooks."""

import contextlib
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from opusclip_mlops import journal, stopping, waiting, wandb_log
from opusclip_mlops.alerts.events import KEY, Event, event_of
from opusclip_mlops.alerts.past import alerts_in
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Batch, Metrics, Record, Tags, Text, now_ms
from opusclip_mlops.sinks import open_sink
from opusclip_mlops.sinks.alerts import NAME
from tests.journeys import LOCAL_ID, append, deliver_and_die, end, make_run, store, wait_until
from tests.receivers import SECRET, Receiver, receiving
from tests.servers import free_port
from tests.sinks.sink_contract import T0_MS, metrics, staged_clip
from tests.wandb_server import wandb_server

NAN = {"kind": "not_finite", "keys": ["train/*"], "recover_points": 2, "cooldown_s": 0}
DELIVER = (
    sys.executable,
    "-c",
    "import sys; from pathlib import Path; from opusclip_mlops import delivery, folder\n"
    "delivery.deliver(folder.RunFolder(Path(sys.argv[1])), sys.argv[2]); print(*sys.modules)\n",
)
HIGH = {"kind": "threshold", "keys": ["train/loss"], "above": 10, "cooldown_s": 0}


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_SECRET", SECRET)


def watched_run(
    tmp_path: Path,
    rules: dict[str, Any],
    *,
    sinks: tuple[str, ...] = (),
    url: str = "",
    **rest: Any,
) -> RunFolder:
    """A run that is watched, and a webhook `team` where there is an address."""
    inside = {"allow_http": True, "allow_private": True}
    team = {"team": {"url": url, "secret_env": "TEAM_SECRET", **inside, **rest}}
    alerts = {"rules": rules, "webhooks": team} if url else {"rules": rules}
    return make_run(tmp_path, [*sinks, "alerts"], alerts=alerts)


def losses(*values: float, first: int = 0) -> list[Record]:
    return [
        Metrics(T0_MS + at, at, {"train/loss": value}) for at, value in enumerate(values, first)
    ]


def said(folder: RunFolder) -> list[Event]:
    """What stands in the journals of the sink, in its order."""
    paths = sorted(folder.path.glob(f"{NAME}-*"))
    items = [item for path in paths for item in journal.read(path)]
    texts = [one.record for one in items if isinstance(one, journal.Entry)]
    events = [event_of(one.text) for one in texts if isinstance(one, Text)]
    return [one for one in events if one]


def ids(events: list[Event]) -> list[str]:
    return [one.id for one in events]


@contextlib.contextmanager
def delivering(folder: RunFolder) -> Iterator[threading.Thread]:
    """Deliver in a thread; it is waited for at the end of the block."""
    thread = threading.Thread(target=deliver, args=(folder, "alerts"), daemon=True)
    thread.start()
    yield thread
    thread.join(120)
    assert not thread.is_alive()


def test_an_alert_is_in_mlflow_and_at_the_webhook(tmp_path: Path, receiver: Receiver) -> None:
    """As a tag, a text with all of it, and a signed message: raised, then recovered."""
    rules = {"nan": {**NAN, "severity": "error", "actions": ["team"]}}
    folder = watched_run(tmp_path, rules, sinks=("mlflow",), url=receiver.url)
    append(folder, losses(1, math.nan, math.nan, 1, 1))
    end(folder)
    assert deliver(folder, "alerts")
    assert deliver(folder, "mlflow")
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs(["1"])
    tag = run.data.tags["opusclip.alert.nan"]
    assert tag == "recovered: train/loss is 1 at step 4, is a number again (no. 1)"
    found = alerts_in(run.info.run_id, tracking_uri=store(tmp_path))
    assert [(one.state, one.step, one.value) for one in found] == [
        ("raised", 1, "nan"),
        ("recovered", 4, "1.0"),
    ]
    assert all(one.is_signed() for one in receiver.got)
    assert [one.content["type"] for one in receiver.got] == [
        "opusclip.alert.raised",
        "opusclip.alert.recovered",
    ]
    assert receiver.got[0].id == f"msg_{LOCAL_ID}_nan-1-raised_{T0_MS + 1}"
    assert folder.progress("alerts").done


def test_no_secret_lies_in_the_runs_folder(tmp_path: Path, receiver: Receiver) -> None:
    """Nor the receiver's address in what is logged: only the variable's name is known there."""
    rules = {"nan": {**NAN, "actions": ["team"]}}
    folder = watched_run(tmp_path, rules, url=receiver.url)
    receiver.codes = [500, 400]
    append(folder, losses(math.nan))
    end(folder)
    deliver(folder, "alerts")
    assert len(receiver.got) == 2
    everything = b"".join(one.read_bytes() for one in folder.path.rglob("*") if one.is_file())
    assert SECRET.encode() not in everything
    journals = b"".join(one.read_bytes() for one in folder.path.glob("*.journal"))
    assert b"a-secret-path" not in journals
    assert ids(said(folder)) == ["nan-1-raised", "nan-1-undelivered-team"]


def test_a_receiver_that_is_away_is_told_when_it_comes_back(tmp_path: Path) -> None:
    """The sink goes on for it and shows its fault; who closes the run does not wait for it."""
    port = free_port()
    rules = {"nan": {**NAN, "actions": ["team"]}, "high": {**HIGH, "actions": ["team"]}}
    folder = watched_run(tmp_path, rules, url=f"http://127.0.0.1:{port}/")
    append(folder, losses(math.nan, 99))
    end(folder)
    with delivering(folder):
        wait_until(lambda: "webhook team: 127.0.0.1: no conn" in folder.progress("alerts").error)
        assert not folder.progress("alerts").done
        assert waiting.has_ended(folder, ["alerts"])
        with receiving(port) as receiver:
            wait_until(lambda: folder.progress("alerts").done)
    assert list(receiver.counts.values()) == [1, 1]
    assert [one.content["data"]["alert"] for one in receiver.got] == ["nan", "high"]
    assert folder.progress("alerts").error == ""


def test_killed_between_an_alert_and_its_delivery_it_is_one_alert(
    tmp_path: Path, receiver: Receiver
) -> None:
    """The sink that goes on meets its own words, and tells them once."""
    rules = {"nan": {**NAN, "actions": ["team"]}, "high": HIGH}
    folder = watched_run(tmp_path, rules, url=receiver.url)
    append(folder, losses(1, math.nan, 99, 1, 1, math.nan))
    deliver_and_die(folder, "alerts")
    before = ids(said(folder))
    assert before == [
        "nan-1-raised",
        "high-1-raised",
        "nan-1-recovered",
        "high-1-recovered",
        "nan-2-raised",
    ]
    assert receiver.got == []
    end(folder)
    deliver(folder, "alerts")
    assert ids(said(folder)) == before
    assert [one.id.split("_")[2] for one in receiver.got] == [
        "nan-1-raised",
        "nan-1-recovered",
        "nan-2-raised",
    ]


def test_what_time_alone_had_broken_before_a_kill_is_taken_over(
    tmp_path: Path, receiver: Receiver
) -> None:
    """The moment does not come back; the alert stays one, is told, and recovers."""
    stuck = {"kind": "no_progress", "minutes": 500, "actions": ["team"]}
    folder = watched_run(tmp_path, {"stuck": stuck}, url=receiver.url)
    raised = Event(
        alert="stuck", state="raised", number=1, message="no", timestamp_ms=5, actions=("team",)
    )
    append(folder, raised.records(), journal=NAME)
    append(folder, losses(1))
    end(folder)
    deliver(folder, "alerts")
    assert ids(said(folder)) == ["stuck-1-raised"]
    assert [one.id.split("_")[2] for one in receiver.got] == ["stuck-1-raised"]
    append(folder, losses(2))
    deliver(folder, "alerts")
    assert ids(said(folder)) == ["stuck-1-raised", "stuck-1-recovered"]


def test_a_sink_that_is_opened_again_goes_on_with_its_episode(tmp_path: Path) -> None:
    """It raises nothing twice, and knows what recovers."""
    folder = watched_run(tmp_path, {"high": HIGH})
    append(folder, losses(99))
    end(folder)
    deliver(folder, "alerts")
    append(folder, losses(98, 1, first=1))
    deliver(folder, "alerts")
    assert ids(said(folder)) == ["high-1-raised", "high-1-recovered"]


def test_a_run_that_stands_still_is_seen_while_it_lives(tmp_path: Path) -> None:
    """Raised though nothing is logged, recovered by a point, and over with the run."""
    rules = {"stuck": {"kind": "no_progress", "minutes": 0.01, "cooldown_s": 0}}
    folder = watched_run(tmp_path, rules)
    with delivering(folder):
        wait_until(lambda: ids(said(folder)) == ["stuck-1-raised"])
        append(folder, losses(1))
        wait_until(lambda: ids(said(folder))[1:2] == ["stuck-1-recovered"])
        end(folder)
    assert folder.progress("alerts").done


def test_a_sink_that_has_nothing_to_wait_for_is_done_with_the_run(tmp_path: Path) -> None:
    """Rules of time do not hold up its end, nor do records of any kind."""
    rules = {
        "stuck": {"kind": "no_progress"},
        "late": {"kind": "mirror_lag"},
        "disk": {"kind": "disk_filling", "above_percent": 100},
        "lost": {"kind": "dropped_points"},
        "nan": NAN,
    }
    folder = watched_run(tmp_path, rules, sinks=("mlflow",))
    every = [staged_clip(folder), Tags({"a": "b"}), Text(T0_MS, 1, "notes", "x"), *metrics(3000)]
    append(folder, every)
    end(folder)
    deliver(folder, "alerts")
    progress = folder.progress("alerts")
    assert (progress.done, progress.rejected, progress.faults) == (True, 0, 0)
    assert said(folder) == []


def test_a_stop_reaches_the_process_that_trains(tmp_path: Path) -> None:
    """With the alert as the reason; of another run's process nothing is known."""
    folder = watched_run(tmp_path, {"nan": {**NAN, "actions": ["stop"]}})
    append(folder, losses(math.nan))
    with delivering(folder):
        wait_until(lambda: stopping.reason_to_stop(folder) != "")
        end(folder)
    assert stopping.reason_to_stop(folder) == "alert nan: train/loss is nan at step 0"


def test_a_stop_bears_the_alerts_time_however_late_it_is_asked_for(tmp_path: Path) -> None:
    """So it is not about who began meanwhile; a time that is still to come is none."""
    ahead_ms = now_ms() + 3_600_000
    folder = watched_run(tmp_path, {"nan": {**NAN, "actions": ["stop"]}})
    append(folder, [Metrics(T0_MS + 7, 0, {"train/loss": math.nan})])
    end(folder)
    deliver(folder, "alerts")
    assert stopping.reason_to_stop(folder, since_ms=T0_MS + 7)
    assert not stopping.reason_to_stop(folder, since_ms=T0_MS + 8)
    append(folder, losses(1, 1, first=1))
    append(folder, [Metrics(ahead_ms, 3, {"train/loss": math.nan})])
    deliver(folder, "alerts")
    assert stopping.reason_to_stop(folder, since_ms=T0_MS + 8)
    assert not stopping.reason_to_stop(folder, since_ms=ahead_ms)


def test_a_full_disk_keeps_the_alert_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is given again, and the alert is said then."""
    folder = watched_run(tmp_path, {"nan": NAN})
    sink = open_sink("alerts", folder)
    state = sink.open({})
    batch = Batch(records=tuple(losses(math.nan)))
    real = journal.os.write
    monkeypatch.setattr(journal.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match=r"nan-1-raised cannot be written down: .*full"):
        sink.write(batch)
    monkeypatch.setattr(journal.os, "write", real)
    again = open_sink("alerts", folder)
    again.open(state)
    again.write(batch)
    assert ids(said(folder)) == ["nan-1-raised"]


@pytest.mark.parametrize(("is_watched", "count"), [(True, 1), (False, 0)])
def test_wandb_tells_of_a_runs_own_alerts_and_of_no_mirrored_ones(
    tmp_path: Path, is_watched: bool, count: int
) -> None:
    """The text is there in both; a mirror of an old run alarms nobody."""
    rules = {"nan": {**NAN, "severity": "error", "actions": ["wandb"]}, "high": HIGH}
    folder = make_run(
        tmp_path,
        ["wandb", "alerts"] if is_watched else ["wandb"],
        alerts={"rules": rules} if is_watched else {},
    )
    for name in ("nan", "high"):
        actions = ("wandb",) if name == "nan" else ()
        event = Event(
            alert=name, state="raised", number=1, message=f"{name} it is", timestamp_ms=T0_MS,
            severity="error", actions=actions,
        )  # fmt: skip
        append(folder, event.records(), journal=NAME)
    end(folder)
    deliver(folder, "wandb")
    (log,) = tmp_path.rglob("*.wandb")
    found = [one.alert for one in wandb_log.read_records(log) if one.HasField("alert")]
    assert [(one.title, one.text, one.level) for one in found] == [
        ("nan", "nan it is", "ERROR")
    ] * count
    rows = [one for one in wandb_log.read_records(log) if one.HasField("history")]
    assert any(KEY in wandb_log.row(one) for one in rows)


def test_wandbs_server_is_told_of_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule's name, what is wrong, and how bad it is."""
    event = Event(
        alert="nan", state="raised", number=1, message="loss is nan", timestamp_ms=T0_MS,
        severity="error", actions=("wandb",),
    )  # fmt: skip
    with wandb_server(tmp_path / "wandb_server") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        folder = watched_run(tmp_path, {"nan": NAN}, sinks=("wandb",))
        append(folder, event.records(), journal=NAME)
        end(folder)
        # A process keeps to its first server.
        command = [*DELIVER, str(folder.path), "wandb"]
        subprocess.run(command, check=True, timeout=240, stdout=subprocess.DEVNULL)
        (alert,) = server.state()["alerts"]
    assert (alert["title"], alert["text"], alert["severity"]) == ("nan", "loss is nan", "ERROR")
    assert alert["runName"] == LOCAL_ID


def test_the_sinks_process_is_light_while_it_tells_nobody(tmp_path: Path) -> None:
    """Neither MLflow nor NumPy is loaded to judge points."""
    folder = watched_run(tmp_path, {"nan": NAN, "stuck": {"kind": "no_progress"}})
    append(folder, losses(1, math.nan))
    end(folder)
    command = [*DELIVER, str(folder.path), "alerts"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert not {"mlflow", "numpy", "requests", "torch", "wandb"} & set(done.stdout.split())
    assert ids(said(folder)) == ["nan-1-raised"]
