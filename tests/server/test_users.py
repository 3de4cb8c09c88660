"""Where basic-auth keeps its users."""

import stat
from pathlib import Path

import pytest
from mlflow.server.auth.config import read_auth_config

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import users
from opusclip_mlops.server.settings import Wanted


def test_users_are_kept_in_the_servers_own_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All servers on one database know the same users; MLflow reads the file as it is meant."""
    wanted = Wanted(backend="postgresql://u:50%25%40x@h/d", state=tmp_path, app_name="basic-auth")
    env = users.environment(wanted, {"HOME": "/"})
    monkeypatch.setenv(users.CONFIG, env[users.CONFIG])
    config = read_auth_config()
    assert config.database_uri == "postgresql+psycopg2://u:50%25%40x@h/d"
    assert config.database_uri == users.database_uri(env)
    assert config.admin_password is None
    assert config.auth_cache_ttl_seconds == users.CACHE_S
    assert stat.S_IMODE(Path(env[users.CONFIG]).stat().st_mode) == 0o600


def test_users_are_kept_beside_a_file(tmp_path: Path) -> None:
    """In a database of their own."""
    wanted = Wanted(backend=f"sqlite:///{tmp_path}/m.db", app_name="basic-auth")
    env = users.environment(wanted, {})
    assert users.database_uri(env) == f"sqlite:///{tmp_path}/basic_auth.db"


def test_a_configuration_that_is_named_is_used(tmp_path: Path) -> None:
    """It is neither changed nor copied."""
    file = tmp_path / "mine.ini"
    file.write_text("[mlflow]\ndatabase_uri = sqlite:////srv/users.db\n")
    wanted = Wanted(backend="sqlite:///m.db", state=tmp_path / "state")
    env = users.environment(wanted, {users.CONFIG: str(file)})
    assert env == {users.CONFIG: str(file)}
    assert users.database_uri(env) == "sqlite:////srv/users.db"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("content", ["", "nonsense s3same", "[mlflow]\ndatabase_uri = %(s3same\n"])
def test_a_configuration_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    """What stands in it is not said: there may be a password."""
    (tmp_path / "mine.ini").write_text(content)
    with pytest.raises(ConfigError, match=r"mine\.ini") as refused:
        users.database_uri({users.CONFIG: str(tmp_path / "mine.ini")})
    assert "s3same" not in str(refused.value)
