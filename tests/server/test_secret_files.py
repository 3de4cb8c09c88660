"""Secrets in files, and keys that are made once."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import secret_files

FLASK = "MLFLOW_FLASK_SERVER_SECRET_KEY"
FERNET = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


@pytest.mark.parametrize("name", secret_files.NAMES)
def test_a_variables_value_may_stand_in_a_file(tmp_path: Path, name: str) -> None:
    """NAME_FILE sets NAME, without the end of the line."""
    (tmp_path / "secret").write_text("s3same\n")
    assert secret_files.read({f"{name}_FILE": str(tmp_path / "secret")})[name] == "s3same"


def test_a_value_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """Nobody could know which one counts."""
    with pytest.raises(ConfigError, match="both set"):
        secret_files.read({"PGPASSWORD": "a", "PGPASSWORD_FILE": str(tmp_path / "b")})


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, of several lines, no text or without end; what it holds is not said."""
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigError, match="PGPASSWORD_FILE") as refused:
        secret_files.read({"PGPASSWORD_FILE": str(tmp_path / "secret")})
    assert "two" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The variable and the file are."""
    with pytest.raises(ConfigError, match=r"PGPASSWORD_FILE: .*gone cannot be read: No such file"):
        secret_files.read({"PGPASSWORD_FILE": str(tmp_path / "gone")})


def test_keys_are_made_once_for_all_workers_and_later_starts(tmp_path: Path) -> None:
    """Private, told of when made, and the same ever after."""
    told: list[str] = []
    first = secret_files.with_keys({"A": "b"}, tmp_path / "state", tell=told.append)
    again = secret_files.with_keys({"A": "b"}, tmp_path / "state", tell=told.append)
    assert first == again
    assert len(told) == 1
    assert first[FLASK] not in told[0]
    assert len(base64.urlsafe_b64decode(first[FERNET])) == 32
    files = list((tmp_path / "state").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_keys_that_are_given_are_used(tmp_path: Path) -> None:
    """Nothing is written then."""
    given = {FLASK: "one", FERNET: "two"}
    assert secret_files.with_keys(given, tmp_path / "state", tell=print) == given
    assert not (tmp_path / "state").exists()


def test_servers_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    """Whoever is first has made it, the others read it."""
    with ThreadPoolExecutor(8) as threads:
        found = [
            threads.submit(secret_files.with_keys, {}, tmp_path / "s", tell=str) for _ in range(8)
        ]
    assert len({one.result()[FLASK] for one in found}) == 1
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """With the option that names another."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state"):
        secret_files.with_keys({}, tmp_path / "file" / "state", tell=print)
