from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops.doctor.findings import Subject


@pytest.fixture
def subject(tmp_path: Path) -> Callable[..., Subject]:
    """Makes what is to be looked at: a folder of this test alone, with what is said beside it."""

    def make(**fields: Any) -> Subject:
        mine = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "folder": tmp_path}
        return Subject(**{"journal_dir": tmp_path / "journal", **mine, **fields})

    return make
