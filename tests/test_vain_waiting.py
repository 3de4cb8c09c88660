"""A machine waits for the run that another is to make, but not for ever."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import operating, vain_waiting
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.launch import start_shipper
from opusclip_mlops.layout import LOCAL_ID_TAG, MIRROR_ID_TAG
from opusclip_mlops.records import Metrics, RunEnded, RunStarted
from opusclip_mlops.vain_waiting import has_waited_in_vain, pause_s, wait_anew
from tests.journeys import LOCAL_ID, append, store

T0_MS = 1_700_000_000_000
START = RunStarted("host-1-77-1", "host-1", 1, 1.0, T0_MS, rank=1, world_size=2)
END = RunEnded("host-1-77-1", "FINISHED", T0_MS + 9)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a machine that does not own its run."""
    found = RunFolder(tmp_path / "journal" / LOCAL_ID)
    manifest = Manifest(
        local_id=LOCAL_ID, cwd=str(tmp_path), sinks=["mlflow"], experiment_name="films",
        start_time_ms=T0_MS, tracking_uri=store(tmp_path), system_metrics=False, ranks=2, nodes=2,
        node=1, owns_run=False,
    )  # fmt: skip
    found.create(manifest)
    append(found, [START], journal=f"{START.session}+control")
    return found


def test_only_what_was_waited_since_the_ranks_ended_counts(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they train nothing is given up; pauses grow, and the last word says what to do."""
    monkeypatch.setattr(vain_waiting, "WAIT_S", 60.0)
    assert {pause_s(folder) for _ in range(200)} == {1.0}
    append(folder, [END], journal=f"{START.session}+control")
    waited: list[float] = []
    while sum(waited) < 60.0:
        waited.append(pause_s(folder))
    assert max(waited) > 3
    with pytest.raises(OpusclipError, match=f"opusclip recover {LOCAL_ID}"):
        pause_s(folder)
    assert has_waited_in_vain(folder)
    wait_anew(folder)
    assert not has_waited_in_vain(folder)


def test_processes_end_and_what_was_logged_is_recovered_later(
    folder: RunFolder, tmp_path: Path
) -> None:
    """Nobody asks for ever; the journal stays, and is delivered once the run is there."""
    client = MlflowClient(store(tmp_path))
    experiment_id = client.create_experiment("films")
    append(folder, [Metrics(T0_MS, 1, {"x": 1.0})], journal=START.session)
    append(folder, [END], journal=f"{START.session}+control")
    soon = {"OPUSCLIP_OWNER_WAIT_S": "1"}
    assert start_shipper(folder, environment=soon).wait(timeout=240) == 0
    assert has_waited_in_vain(folder)
    assert folder.segments()
    assert "has not made it in 1 s" in folder.progress("mlflow").error
    assert (folder.path / "shipper.log").read_text().count("OpusclipError: the machine") == 1

    tags = {LOCAL_ID_TAG: LOCAL_ID, MIRROR_ID_TAG: LOCAL_ID}
    client.create_run(experiment_id, tags=tags)
    (recovered,) = operating.recover([LOCAL_ID], journal_dir=tmp_path / "journal", timeout_s=240)
    assert recovered.outcome == "delivered"
    assert not folder.path.exists()
