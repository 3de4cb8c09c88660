"""What is asked of `opusclip server`, and what MLflow's server is told."""

import click
import pytest
from mlflow.cli import server as mlflow_server
from mlflow.server.security_utils import is_allowed_host_header

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import settings
from opusclip_mlops.server.settings import Wanted, arguments, check, environment
from opusclip_mlops.server_cli import server

SECRET = "s3same-open"
POSTGRES = f"postgresql://mlflow:{SECRET}@db.example/runs"


def flags(command: click.Command) -> set[str]:
    """Every long flag of a command."""
    found = [
        (*one.opts, *one.secondary_opts)
        for one in command.params
        if one.param_type_name == "option"
    ]
    return {flag for names in found for flag in names if flag.startswith("--")}


@pytest.mark.parametrize("flag", sorted(flags(mlflow_server)))
def test_each_flag_of_mlflows_server_is_ours_or_passed_or_refused(flag: str) -> None:
    """A flag of `mlflow server` is never taken for something else."""
    places = [flag in known for known in (flags(server), settings.PASSED, settings.REFUSED)]
    assert places.count(True) == 1


def test_flags_that_pass_are_known_to_mlflow_with_or_without_a_value() -> None:
    """What passes is a flag of `mlflow server`, and takes a value there when it does here."""
    options = {
        flag: one for one in mlflow_server.params for flag in (*one.opts, *one.secondary_opts)
    }
    for flag, value in settings.PASSED.items():
        assert getattr(options[flag], "is_flag", False) is not bool(value), flag


def test_the_command_says_nothing_secret() -> None:
    """The database's URI is in the environment, where `ps` does not show it."""
    wanted = Wanted(backend=POSTGRES, app_name="basic-auth", passed=("--static-prefix", "/m"))
    assert SECRET not in " ".join(arguments(wanted))
    assert arguments(wanted)[-4:] == ["--app-name", "basic-auth", "--static-prefix", "/m"]
    made = environment(wanted, {})
    assert made["MLFLOW_BACKEND_STORE_URI"] == f"opusclip+{wanted.stock_backend}"
    assert wanted.stock_backend == POSTGRES.replace("postgresql:", "postgresql+psycopg2:")


def test_jobs_and_telemetry_are_off_and_smoke_tests_are_off_unless_wanted() -> None:
    """The server runs nothing that was not asked for."""
    made = environment(Wanted(backend="sqlite:///m.db"), {"HOME": "/home/x"})
    assert made["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert made["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert made["HOME"] == "/home/x"
    assert "OPUSCLIP_SERVER_SMOKE_TESTS" not in made
    wanted = Wanted(backend="sqlite:///m.db", smoke_tests=True)
    assert environment(wanted, {})["OPUSCLIP_SERVER_SMOKE_TESTS"] == "true"


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost:5000", True), ("127.0.0.1", True), ("[::1]:5000", True), ("[::1]", True),
        ("10.1.2.3:5000", True), ("192.168.0.9", True), ("172.16.0.1:80", True),
        ("mlflow.example", True), ("mlflow.example:8443", True), ("a.team.example:1", True),
        ("only.example:8080", True), ("only.example:8081", False),
        ("evil.example", False), ("mlflow.example.evil.com", False), ("172.32.0.1", False),
    ],
)  # fmt: skip
def test_hosts_that_are_answered(host: str, is_answered: bool) -> None:
    """This machine, private addresses and those named; a name without a port has all ports."""
    named = ("mlflow.example", "*.team.example", "only.example:8080")
    assert is_allowed_host_header(settings.allowed_hosts(named), host) is is_answered


def test_any_host_is_answered_when_that_is_said() -> None:
    """A star stands for all names."""
    assert settings.allowed_hosts(["*"]) == ["*"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backend": f"mysql://u:{SECRET}@h/d"}, "--backend mysql:… is none of"),
        ({"backend": "mlflow.db"}, "is none of"),
        ({"backend": "http://u:p@server"}, "is none of"),
        ({"backend": "sqlite://"}, "needs a file"),
        ({"backend": "sqlite:///:memory:"}, "needs a file"),
        ({"read_replica": f"mysql://u:{SECRET}@h/d"}, "--read-replica-backend-store-uri mysql"),
        ({"artifacts": "s3:///prefix"}, "is no place"),
        ({"artifacts": ""}, "is no place"),
        ({"artifacts": "http://server/x"}, "another server's"),
        ({"passed": ("--frobnicate",)}, "no such option: --frobnicate"),
        ({"passed": ("--expose-prometheus",)}, "needs a value"),
        ({"passed": ("stray",)}, "no such option: stray"),
        ({"passed": ("--registry-store-uri", "sqlite:///x")}, "one transaction"),
        ({"passed": ("--gunicorn-opts=-k gevent",)}, "need uvicorn"),
        ({"passed": ("--jobs",)}, "job runner"),
        ({"max_request_mb": 0.0}, "above 0"),
        ({"max_request_mb": float("nan")}, "above 0"),
    ],
)
def test_settings_that_cannot_be_had_are_refused_with_the_reason(
    changed: dict[str, object], said: str
) -> None:
    """One line says what is wrong, and no password is in it."""
    wanted = Wanted(**{"backend": "sqlite:///m.db", **changed})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said) as refused:
        check(wanted, {})
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(settings.REFUSED_VARIABLES))
def test_variables_that_say_what_is_refused_are_refused(name: str) -> None:
    """MLflow reads these too; an empty or false one says nothing."""
    wanted = Wanted(backend="sqlite:///m.db")
    with pytest.raises(ConfigError, match=name):
        check(wanted, {name: "sqlite:///other.db"})
    check(wanted, {name: "false"})
    check(wanted, {name: ""})


def test_artifacts_pass_through_the_server_or_go_to_their_place() -> None:
    """Without proxying, clients are told the place itself."""
    proxied = Wanted(backend="sqlite:///m.db", artifacts="s3://films/runs")
    assert proxied.artifact_root == "mlflow-artifacts:/"
    direct = Wanted(backend="sqlite:///m.db", artifacts="s3://films/runs", serves_artifacts=False)
    assert direct.artifact_root == "s3://films/runs"
    assert "--no-serve-artifacts" in arguments(direct)


def test_keys_are_kept_beside_the_database() -> None:
    """A file's keys lie beside it, a database server's where the server is started."""
    assert str(Wanted(backend="sqlite:////srv/m.db").state_folder) == "/srv/.opusclip/server"
    assert Wanted(backend=POSTGRES).state_folder.is_absolute()


def test_who_opens_a_server_to_others_is_told_how() -> None:
    """On all addresses: by which names it answers, and that nobody is asked for a password."""
    assert settings.advice(Wanted(backend="sqlite:///m.db")) == []
    hints = settings.advice(Wanted(backend="sqlite:///m.db", host="0.0.0.0"))
    assert "--allowed-hosts" in hints[0]
    assert "--app-name basic-auth" in hints[1]
