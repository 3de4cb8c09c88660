"""What is served: read from the files that MLflow fetched."""

from pathlib import Path

from opusclip_mlops.monitoring.served import ServedVersion


def test_a_version_is_known_by_name_and_number(tmp_path: Path) -> None:
    """And by the run that trained it."""
    (tmp_path / "registered_model_meta").write_text("model_name: clips\nmodel_version: '3'\n")
    (tmp_path / "MLmodel").write_text("model_id: m-1\nrun_id: r1\n")
    served = ServedVersion.in_folder(tmp_path)
    assert served == ServedVersion(model="clips", version="3", model_id="m-1", run_id="r1")
    assert served.title == "clips v3"


def test_a_model_without_a_version_is_known_by_its_id(tmp_path: Path) -> None:
    """Files that are no YAML, or not there, say nothing."""
    (tmp_path / "registered_model_meta").write_text("{")
    (tmp_path / "MLmodel").write_text("model_id: m-1\n")
    assert ServedVersion.in_folder(tmp_path).title == "m-1"
    assert ServedVersion.in_folder(tmp_path / "none").title == "none"


def test_a_file_of_its_own_stays_in_its_folder() -> None:
    """Whatever the model is called; two that look alike have two."""
    names = {
        ServedVersion(model=model, version=version, model_id="", run_id="").file_name()
        for model in ("../../etc", "..", "a/b", "a_b", "x" * 300)
        for version in ("1", "2")
    }
    assert len(names) == 10
    assert all("/" not in name and len(name) < 110 and name != ".." for name in names)
