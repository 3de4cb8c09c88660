"""The study of a sweep."""

from pathlib import Path

import optuna
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.storage import open_storage
from opusclip_mlops.sweeps.studies import begin_study, open_study
from tests.sweeps.small_sweeps import config_of, study_of


def test_a_study_is_opened_as_it_was_begun(tmp_path: Path) -> None:
    """The file, the run and the count; another count holds for everybody from then on."""
    study_of(tmp_path, config_of(), count=4, parent="abc")
    place = str(tmp_path / "study.journal")
    found = open_study(place, "s")
    assert (found.config, found.parent_run_id, found.count) == (config_of(), "abc", 4)
    assert open_study(place, "s", count=9).count == 9
    assert open_study(place, "s").count == 9


def test_what_is_not_there_or_there_already_is_said(tmp_path: Path) -> None:
    """A name that is taken, one that nobody has, and a study that was never begun whole."""
    place = str(tmp_path / "study.journal")
    study_of(tmp_path, config_of())
    with pytest.raises(ConfigError, match="sweep s is there already: go on with --resume s"):
        begin_study(place, "s", config_of(), parent_run_id="p", count=1)
    with pytest.raises(ConfigError, match="there is no sweep t in this storage"):
        open_study(place, "t")
    optuna.create_study(storage=open_storage(place), study_name="half")
    with pytest.raises(ConfigError, match="sweep half was never begun"):
        open_study(place, "half")
