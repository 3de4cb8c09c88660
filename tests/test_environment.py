"""The link that makes `mlflow run` use the environment that is already there."""

import subprocess
import sys
from pathlib import Path

import mlflow.utils.virtualenv
import pytest

from opusclip_mlops.environment import link_environment, mlflow_environment_path
from opusclip_mlops.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
RUNNING = Path(sys.prefix).resolve()


@pytest.fixture(autouse=True)
def env_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let MLflow keep its environments in a folder of the test."""
    root = tmp_path / "envs"
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(root))
    return root


def test_the_link_leads_to_the_running_environment(env_root: Path) -> None:
    """The folder MLflow looks for is a link to the virtual environment in use."""
    link = link_environment(ROOT)
    assert link.path.parent == env_root
    assert link.path.readlink() == link.target == RUNNING


def test_linking_twice_changes_nothing() -> None:
    """A second call leaves the very same link, not a new one."""
    first = link_environment(ROOT)
    made = first.path.lstat()
    assert link_environment(ROOT) == first
    assert first.path.lstat() == made


@pytest.mark.parametrize("there", [True, False], ids=["another", "deleted"])
def test_a_link_to_another_environment_is_replaced(tmp_path: Path, there: bool) -> None:
    """It gives way to a new one, and is named where its environment is still there."""
    other = tmp_path / "other"
    if there:
        other.mkdir()
    path = mlflow_environment_path(ROOT)
    path.parent.mkdir()
    path.symlink_to(other)
    link = link_environment(ROOT)
    assert link.path.readlink() == RUNNING
    assert link.replaced == (other if there else None)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_made_by_mlflow_is_left_alone() -> None:
    """A real environment at that place is refused by name, and stays as it was."""
    path = mlflow_environment_path(ROOT)
    path.mkdir(parents=True)
    kept = path / "pyvenv.cfg"
    kept.write_text("home = /usr/bin\n")
    with pytest.raises(ConfigError, match=path.name):
        link_environment(ROOT)
    assert kept.read_text() == "home = /usr/bin\n"


def test_clones_share_the_name_and_other_files_do_not(tmp_path: Path) -> None:
    """The name follows python_env.yaml's content, not the folder it lies in."""
    for name in ("clone", "other"):
        (tmp_path / name).mkdir()
    content = (ROOT / "python_env.yaml").read_text()
    (tmp_path / "clone" / "python_env.yaml").write_text(content)
    (tmp_path / "other" / "python_env.yaml").write_text(content + "  - six\n")
    assert mlflow_environment_path(tmp_path / "clone") == mlflow_environment_path(ROOT)
    assert mlflow_environment_path(tmp_path / "other") != mlflow_environment_path(ROOT)


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    """A folder that is no project is refused by its full name."""
    with pytest.raises(ConfigError, match=f"no python_env.yaml in {tmp_path}"):
        mlflow_environment_path(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "- six", "pythons: '3'", "dependencies: [", "python: 3.11"]
)
def test_a_malformed_file_is_one_line(tmp_path: Path, content: str) -> None:
    """What MLflow could not read is refused in one line that names the file."""
    (tmp_path / "python_env.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"python_env\.yaml is not") as caught:
        mlflow_environment_path(tmp_path)
    assert "\n" not in str(caught.value)


def test_outside_a_virtual_environment_nothing_is_linked(tmp_path: Path) -> None:
    """Python itself is never linked: MLflow would install into it."""
    site_packages = str(Path(mlflow.__file__).parents[1])
    code = (
        f"import sys; sys.path += [{str(ROOT)!r}, {site_packages!r}]\n"
        "from opusclip_mlops.cli import main\n"
        f"main(['link-env', {str(ROOT)!r}])"
    )
    done = subprocess.run(
        [sys._base_executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.base_prefix} is not a virtual environment")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "envs").exists() or not list((tmp_path / "envs").iterdir())


def test_an_mlflow_that_names_environments_otherwise_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When MLflow's private names move, the error says which MLflow and what to do."""
    monkeypatch.delattr(mlflow.utils.virtualenv, "_get_virtualenv_name")
    with pytest.raises(ConfigError, match=r"MLflow \d.*--env-manager local"):
        mlflow_environment_path(ROOT)


def test_a_place_that_cannot_be_written_is_one_line(env_root: Path) -> None:
    """A file where the folder of environments should be is reported, not traced."""
    env_root.write_text("")
    with pytest.raises(ConfigError, match=f"cannot link {env_root}"):
        link_environment(ROOT)
