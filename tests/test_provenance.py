"""Facts about `opusclip_mlops.provenance`: the commit, the libraries, the user, the machine."""

import getpass
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True, text=True, errors="replace", check=True,
    )  # fmt: skip
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """A repository with one commit of one file."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "train.py").write_text("print(1)\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "--quiet", "--message", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _only_these_repositories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def test_a_clean_repository(repository: Path) -> None:
    """The full commit, and nothing differs from it; files git does not know do not count."""
    (repository / "notes.txt").write_text("not tracked")
    assert provenance.git_commit(repository) == git(repository, "rev-parse", "HEAD")
    assert provenance.git_dirty(repository) is False


@pytest.mark.parametrize("how", ["changed", "staged", "removed", "added"])
def test_a_repository_with_changes(repository: Path, how: str) -> None:
    """A tracked file that differs in any way makes it dirty."""
    name = "new.py" if how == "added" else "train.py"
    (repository / name).write_text("print(2)\n")
    if how in ("staged", "added"):
        git(repository, "add", name)
    if how == "removed":
        (repository / name).unlink()
    assert provenance.git_dirty(repository) is True


def test_a_folder_inside_a_repository(repository: Path) -> None:
    """Training is started anywhere below the top."""
    (repository / "a" / "b").mkdir(parents=True)
    commit = provenance.git_commit(repository / "a" / "b")
    assert commit == git(repository, "rev-parse", "HEAD")


def test_outside_a_repository(tmp_path: Path) -> None:
    """In a plain folder, and in none at all, neither is known."""
    for folder in (tmp_path, tmp_path / "none"):
        assert provenance.git_commit(folder) is None
        assert provenance.git_dirty(folder) is None
        assert not any("git" in name for name in provenance.run_tags(folder))


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    """There is nothing yet that a run could come from."""
    git(tmp_path, "init", "--quiet")
    assert provenance.git_commit(tmp_path) is None
    assert not any("git" in name for name in provenance.run_tags(tmp_path))


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without git trains as well."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.git_commit(repository) is None
    assert provenance.git_dirty(repository) is None


def test_file_names_in_any_encoding(repository: Path) -> None:
    """Names that are no UTF-8, which git can be told to print as they are, stop nothing."""
    git(repository, "config", "core.quotepath", "false")
    path = os.fsencode(repository) + b"/caf\xe9.py"
    with open(path, "wb") as file:
        file.write(b"print(1)\n")
    git(repository, "add", "--all")
    assert provenance.git_dirty(repository) is True


def test_the_users_index_is_left_alone(repository: Path) -> None:
    """Asking writes nothing into the repository, where the user may be committing just now."""
    index = repository / ".git" / "index"
    os.utime(repository / "train.py", (1, 1))
    before = (index.stat().st_ino, index.read_bytes())
    assert provenance.git_dirty(repository) is False
    assert (index.stat().st_ino, index.read_bytes()) == before


def test_folders_do_not_answer_for_each_other(tmp_path: Path) -> None:
    """Each folder has its own commit, also when both are asked for as `.` in turn."""
    first, second = (make_repository(tmp_path / name) for name in ("first", "second"))
    (second / "train.py").write_text("print(2)\n")
    commits = {git(folder, "rev-parse", "HEAD") for folder in (first, second)}
    assert len(commits) == 2
    assert {provenance.git_commit(folder) for folder in (first, second)} == commits
    found = []
    for folder in (first, second, tmp_path):
        os.chdir(folder)
        found.append((provenance.git_commit(Path()), provenance.git_dirty(Path())))
    assert {commit for commit, _ in found[:2]} == commits
    assert [dirty for _, dirty in found] == [False, True, None]


def test_a_commit_made_during_training_changes_nothing(repository: Path) -> None:
    """The answer is the one the code was started with."""
    before = provenance.git_commit(repository), provenance.git_dirty(repository)
    (repository / "train.py").write_text("print(2)\n")
    git(repository, "commit", "--all", "--quiet", "--message", "later")
    (repository / "train.py").write_text("print(3)\n")
    assert (provenance.git_commit(repository), provenance.git_dirty(repository)) == before


def test_library_versions_are_the_installed_ones() -> None:
    """Python and the libraries that training depends on, by the names they are installed by."""
    versions = dict(provenance.library_versions())
    assert versions.pop("python") == platform.python_version()
    assert {"torch", "mlflow", "numpy", "opusclip-mlops"} <= versions.keys()
    assert versions == {name: importlib.metadata.version(name) for name in versions}


def test_tags_say_where_a_run_comes_from(repository: Path) -> None:
    """MLflow's own tags where there are such, all values texts."""
    tags = provenance.run_tags(repository)
    assert tags["mlflow.source.name"] == sys.argv[0]
    assert tags["mlflow.source.git.commit"] == git(repository, "rev-parse", "HEAD")
    assert tags["opusclip.git_dirty"] == "false"
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["opusclip.host"] == socket.gethostname()
    assert tags["opusclip.library.torch"] == importlib.metadata.version("torch")
    assert {type(value) for value in tags.values()} == {str}


def test_a_user_without_a_name(tmp_path: Path) -> None:
    """In a container the user may be a number only."""
    if os.getuid() != 0:
        pytest.skip("only root can become a user that is not known")
    provenance.library_versions()
    pid = os.fork()
    if pid == 0:
        found = ""
        try:
            for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
                os.environ.pop(name, None)
            os.setuid(54321)
            found = provenance.run_tags(tmp_path)["mlflow.user"]
        finally:
            os._exit(0 if found == "54321" else 1)
    assert os.waitpid(pid, 0)[1] == 0
