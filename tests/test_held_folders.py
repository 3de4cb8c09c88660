"""Which folder a process's part in a run lies in."""

import os
from pathlib import Path

import pytest

from opusclip_mlops.folder import Identity, Manifest, RunFolder
from opusclip_mlops.held_folders import held_folder

RUN_ID = "a" * 32


@pytest.mark.parametrize(
    ("name", "found"), [("earlier", "earlier"), (".earlier.17.removed", "later")]
)
def test_an_earlier_part_is_gone_on_with_while_its_folder_stands(
    tmp_path: Path, name: str, found: str
) -> None:
    """One that still delivers is taken; not one that has delivered all and is being removed."""
    earlier = RunFolder(tmp_path / name)
    earlier.create(Manifest(local_id="earlier", cwd=str(tmp_path), sinks=[], start_time_ms=1))
    earlier.write_identity(Identity(mirror_id="m", experiment_name="e", run_id=RUN_ID))
    folder, hold = held_folder(tmp_path, "later", RUN_ID)
    os.close(hold)
    assert folder.path == tmp_path / found
