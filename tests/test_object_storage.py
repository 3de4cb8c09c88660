"""Facts about `opusclip_mlops.object_storage`: one address for all, and nobody waits for ever."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from socket import create_server

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from opusclip_mlops import object_storage
from opusclip_mlops.object_storage import SETTING, VARIABLES, advice_on, feed, problem_with

ADDRESS = "http://store.example.com:9000"
WANDB_HANDLER = "wandb/sdk/artifacts/storage_handlers/s3_handler.py"
TENSORBOARD_HANDLER = "tensorboard/compat/tensorflow_stub/io/gfile.py"


def test_one_setting_feeds_what_four_libraries_read() -> None:
    """Doing it again changes nothing, and without the setting nothing is done."""
    environment = {SETTING: ADDRESS}
    assert feed(environment) == feed(environment) == ()
    assert {name: environment[name] for name in VARIABLES} == dict.fromkeys(VARIABLES, ADDRESS)
    assert environment["S3_USE_HTTPS"] == "0"
    empty: dict[str, str] = {}
    assert feed(empty) == ()
    assert empty == {}


def test_what_a_user_has_set_stays_and_one_line_says_so() -> None:
    """A slash at its end makes no other address of it."""
    mine = "https://other.example.com"
    given = {"AWS_ENDPOINT_URL_S3": mine, "S3_ENDPOINT": f"{ADDRESS}/", "S3_USE_HTTPS": "1"}
    environment = {SETTING: ADDRESS, **given}
    [line] = feed(environment)
    assert line == (
        f"AWS_ENDPOINT_URL_S3 is set to another address than {SETTING}: boto3 goes there"
    )
    assert {name: environment[name] for name in given} == given
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == ADDRESS


def test_tensorflow_is_told_of_certificates_as_mlflow_is() -> None:
    """TensorBoard beside TensorFlow has variables of its own for that."""
    environment = {SETTING: "https://store.lan", "MLFLOW_S3_IGNORE_TLS": "true"}
    assert feed(environment) == ()
    assert (environment["S3_USE_HTTPS"], environment["S3_VERIFY_SSL"]) == ("1", "0")


@pytest.mark.parametrize(
    "address",
    [
        "store:9000", "s3://films", "http://", "http://:9000", "http://me:secret9@store:9000",
        "http://store:9000/films", "http://store:port", "http://[", "ftp://store",
    ],
)  # fmt: skip
def test_what_is_no_address_is_not_used(address: str) -> None:
    """The line that says so shows nothing of it: it may hold a password."""
    environment = {SETTING: address}
    [line] = feed(environment)
    assert line.startswith(f"{SETTING} ")
    assert line.endswith(": it is not used")
    assert "secret9" not in line
    assert environment == {SETTING: address}


@pytest.mark.parametrize("address", ["http://127.0.0.1:9000", "https://s3.example.com/"])
def test_an_address_is_a_server(address: str) -> None:
    """With a port or without."""
    assert problem_with(address) == ""


def test_the_libraries_read_these_variables() -> None:
    """A new release of one may read another: then it is found here."""
    folders = [path for path in sys.path if path.endswith("site-packages")]

    def text(file: str) -> str:
        [found] = [f"{one}/{file}" for one in folders if os.path.exists(f"{one}/{file}")]
        with open(found) as opened:
            return opened.read()

    assert '"AWS_S3_ENDPOINT_URL"' in text(WANDB_HANDLER)
    assert '"S3_ENDPOINT"' in text(TENSORBOARD_HANDLER)
    assert '"MLFLOW_S3_ENDPOINT_URL"' in text("mlflow/environment_variables.py")


def test_importing_the_package_is_enough() -> None:
    """In a training process, and in all that it starts; boto3 itself then goes there."""
    code = "import opusclip_mlops, boto3; print(boto3.client('s3').meta.endpoint_url)"
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = {**clean, SETTING: ADDRESS, "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ADDRESS


def test_the_command_says_which_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before what it has to say; nothing where all are alike."""
    from click.testing import CliRunner

    from opusclip_mlops import cli

    monkeypatch.setenv(SETTING, ADDRESS)
    for name in VARIABLES:
        monkeypatch.setenv(name, ADDRESS)
    monkeypatch.setenv("S3_USE_HTTPS", "0")
    monkeypatch.setenv("S3_ENDPOINT", "http://elsewhere")
    with CliRunner().isolation() as streams, pytest.raises(SystemExit):
        cli.main(["--version"])
    said = streams[1].getvalue().decode()
    assert said.splitlines() == [
        f"S3_ENDPOINT is set to another address than {SETTING}: TensorBoard goes there"
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", "set this machine's clock"),
        ("NoSuchBucket", "make the bucket, or mend the artifact location"),
        ("SlowDown", ""),
    ],
)
def test_what_s3_says_comes_with_what_to_do(code: str, said: str) -> None:
    """Its own text is not repeated: it may hold a key."""
    fault = ClientError({"Error": {"Code": code, "Message": "key AKIA1234"}}, "PutObject")
    assert advice_on(fault) == f"S3 says {code}{f': {said}' if said else ''}"
    around = RuntimeError("upload failed")
    around.__cause__ = fault
    assert advice_on(around) == advice_on(fault)


def test_other_faults_are_none_of_s3() -> None:
    """But for a missing key, which says what is missing."""
    assert advice_on(ValueError("no")) == ""
    assert "set AWS_ACCESS_KEY_ID" in advice_on(NoCredentialsError())
    odd = ClientError({"Error": {"Code": "a secret\nand more"}}, "PutObject")
    assert advice_on(odd) == ""


def test_a_block_is_brief_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has set stays; boto3's session in this process is its own again."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with object_storage.asking_briefly():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
        client = boto3.client("s3", region_name="us-east-1")
    assert client.meta.config.connect_timeout == object_storage.CONNECT_S
    assert client.meta.config.read_timeout == object_storage.READ_S
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert boto3.DEFAULT_SESSION is None
    mine = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", mine)
    with object_storage.asking_briefly():
        assert boto3.DEFAULT_SESSION is mine


@pytest.mark.parametrize(
    ("before", "size_bytes", "within"),
    [
        (None, 1, "30"), (None, 4 * 2**30, "1024"), ("30", 4 * 2**30, "1024"),
        ("3600", 4 * 2**30, "3600"), ("for ever", 4 * 2**30, "for ever"),
    ],
)  # fmt: skip
def test_a_large_file_is_waited_for_longer(
    monkeypatch: pytest.MonkeyPatch, before: str | None, size_bytes: int, within: str
) -> None:
    """MLflow's server answers once it has put all of it into S3; afterwards it is as before."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with object_storage.waiting_for(size_bytes):
        assert os.environ[name] == within
    assert os.environ.get(name) == before


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    monkeypatch.setattr(object_storage, "READ_S", 0.5)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with create_server(("127.0.0.1", 0)) as server:
        held = []
        thread = threading.Thread(target=lambda: held.append(server.accept()), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_store_is_given_up(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 itself would wait for a minute, three times."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", silent)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(BotoCoreError) as raised:
        object_storage.client().list_buckets()
    assert "does not answer" in advice_on(raised.value)
