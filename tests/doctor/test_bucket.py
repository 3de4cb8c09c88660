"""A bucket as the doctor sees it, on a real S3 server with keys that may do more or less."""

import subprocess
from collections.abc import Callable, Iterator
from email.utils import formatdate

import pytest

from opusclip_mlops.doctor import bucket
from opusclip_mlops.doctor.examining import examine
from opusclip_mlops.doctor.findings import Finding, Subject
from tests.doctor.answering import Said, answering
from tests.object_store import BUCKET, ObjectStore, object_store
from tests.servers import BIN, free_port

Make = Callable[..., Subject]

ALLOWED = {"reader": "Read,List", "writer": "Write", "secretive": "Read,Write"}
"""Keys beside the one that may do everything, and what they may do."""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """An S3 server that knows these keys."""
    with object_store() as store:
        lines = [
            f"s3.configure -user={name} -access_key={name} -secret_key=secret-of-{name} "
            f"-buckets={BUCKET} -actions={actions} -apply\n"
            for name, actions in ALLOWED.items()
        ]
        places = (
            f"-{name}=127.0.0.1:{store.ports[f'{name}.port']}.{store.ports[f'{name}.port.grpc']}"
            for name in ("master", "filer")
        )
        subprocess.run(
            [BIN / "weed", "shell", *places],
            input="".join(lines), text=True, check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        yield store


@pytest.fixture
def use(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the variables of a key; the one that may do everything by default."""

    def set_them(key: str = "", **others: str) -> None:
        ours = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": f"secret-of-{key}"}
        for name, value in {**server.environment(), **(ours if key else {}), **others}.items():
            monkeypatch.setenv(name, value)

    return set_them


Use = Callable[..., None]


def looked(subject: Subject) -> dict[str, Finding]:
    """What all checks of a bucket find, by the thing they look at."""
    found = examine(bucket.CHECKS, subject, show=lambda *_: None)
    return {one.check.removeprefix("artifacts."): one for one in found}


@pytest.mark.parametrize("prefix", ["", "/runs/kept/"])
def test_a_bucket_that_is_well(subject: Make, use: Use, server: ObjectStore, prefix: str) -> None:
    """Everything can be done with it, and nothing is left behind, not even a part."""
    use()
    found = looked(subject(artifacts=f"s3://{BUCKET}{prefix}"))
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("place", "bucket", "clock", "objects", "multipart", "unfinished"), "ok"
    )
    assert server.keys() == []
    assert server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_uploads_that_never_ended(
    subject: Make, use: Use, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was begun long ago is counted, one of another folder is not."""
    use()
    begun = server.client.create_multipart_upload(Bucket=BUCKET, Key="kept/weights")
    where = subject(artifacts=f"s3://{BUCKET}/kept")
    try:
        assert bucket.unfinished(where).state == "ok"
        monkeypatch.setattr(bucket, "LONGEST_UPLOAD_S", 0)
        found = bucket.unfinished(where)
        assert (found.state, found.seen.startswith("1 were begun")) == ("warning", True)
        assert bucket.unfinished(subject(artifacts=f"s3://{BUCKET}/other")).state == "ok"
    finally:
        told = {"Bucket": BUCKET, "Key": "kept/weights", "UploadId": begun["UploadId"]}
        server.client.abort_multipart_upload(**told)


def test_where_files_go_is_asked_of_the_server(subject: Make, use: Use) -> None:
    """Of the newest experiment; a server that does not say it is no failure here."""
    use()
    root = f"s3://{BUCKET}/direct/7"
    said = Said(body=f'{{"experiments": [{{"artifact_location": "{root}"}}]}}')
    with answering({"api": said}) as uri:
        found = looked(subject(tracking_uri=uri))
    assert found["place"].seen == f"files go directly to {root}"
    assert found["multipart"].state == "ok"
    with answering({"api": Said(401)}) as uri:
        found = looked(subject(tracking_uri=uri))
    assert found["objects"].seen == "the server does not say where files go (401)"


def test_a_key_that_may_only_read(subject: Make, use: Use, server: ObjectStore) -> None:
    """The bucket is reached; writing fails, with what to allow."""
    use("reader")
    found = looked(subject(artifacts=f"s3://{BUCKET}/runs"))
    assert found["bucket"].state == "ok"
    assert found["objects"].seen == f"this key may not write in {BUCKET} (AccessDenied)"
    assert found["objects"].todo == f"allow it s3:PutObject on s3://{BUCKET}/runs/*"
    assert found["multipart"].state == "failed"
    assert server.keys() == []


def test_a_key_that_may_only_write(subject: Make, use: Use, server: ObjectStore) -> None:
    """Each action that is refused is named, and so are those that work."""
    use("writer")
    found = looked(subject(artifacts=f"s3://{BUCKET}"))
    assert found["objects"].state == "failed"
    assert "may not read" in found["objects"].seen
    assert "may not list" in found["objects"].seen
    assert "write, delete work" in found["objects"].seen
    assert "s3:GetObject" in found["objects"].todo
    assert "s3:ListBucket" in found["objects"].todo
    assert server.keys() == []


def test_a_key_that_may_not_list(subject: Make, use: Use) -> None:
    """That is all that is wrong."""
    use("secretive")
    found = looked(subject(artifacts=f"s3://{BUCKET}"))
    assert found["objects"].seen.startswith(f"this key may not list in {BUCKET} (AccessDenied); ")
    assert found["multipart"].state == "ok"


def test_wrong_keys(subject: Make, use: Use) -> None:
    """A wrong secret and an unknown key are told from each other, and neither is shown."""
    asked = subject(artifacts=f"s3://{BUCKET}")
    use(AWS_SECRET_ACCESS_KEY="battery-staple")
    found = looked(asked)
    assert found["bucket"].seen == "the secret key is wrong (SignatureDoesNotMatch)"
    assert found["objects"].state == "skipped"
    assert "staple" not in f"{found}"
    use("nobody")
    assert looked(asked)["bucket"].todo == "compare AWS_ACCESS_KEY_ID"


def test_no_key_at_all(subject: Make, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are named."""
    use()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = looked(subject(artifacts=f"s3://{BUCKET}"))["bucket"]
    assert found.seen == "there is no key for it here"
    assert found.todo.startswith("set AWS_ACCESS_KEY_ID and")


def test_no_such_bucket(subject: Make, use: Use) -> None:
    """With the command that makes it."""
    use()
    found = looked(subject(artifacts="s3://nowhere/runs"))["bucket"]
    assert found.seen == "there is no such bucket (NoSuchBucket)"
    assert found.todo == "make it: aws s3 mb s3://nowhere; or compare its name"


def test_a_name_that_no_bucket_can_have(subject: Make, use: Use) -> None:
    """It is not asked for."""
    use()
    found = looked(subject(artifacts="s3://fi{}lms/runs"))["bucket"]
    assert found.seen == "no bucket can have this name"


def test_nothing_that_answers(subject: Make, use: Use) -> None:
    """The address is told, and the variable it comes from."""
    address = f"http://127.0.0.1:{free_port()}"
    use(MLFLOW_S3_ENDPOINT_URL=address)
    found = looked(subject(artifacts=f"s3://{BUCKET}"))
    assert found["bucket"].seen == f"nothing answers at {address}"
    assert "MLFLOW_S3_ENDPOINT_URL" in found["bucket"].todo
    assert found["multipart"].seen == "artifacts.bucket failed"


def test_what_is_no_s3(subject: Make, use: Use) -> None:
    """A web server at its address fails."""
    with answering({"": Said(200, "<html>Hello</html>")}) as uri:
        use(MLFLOW_S3_ENDPOINT_URL=uri)
        found = looked(subject(artifacts=f"s3://{BUCKET}"))
    assert found["objects"].state == "failed"


def test_a_clock_that_is_off(subject: Make, use: Use) -> None:
    """What the store says of it, and what its own date shows."""
    skewed = Said(
        403,
        "<Error><Code>RequestTimeTooSkewed</Code><Message>.</Message></Error>",
        {"Date": formatdate(1_700_000_000, usegmt=True)},
    )
    with answering({"": skewed}) as uri:
        use(MLFLOW_S3_ENDPOINT_URL=uri)
        asked = subject(artifacts=f"s3://{BUCKET}")
        assert looked(asked)["bucket"].todo == "set both by NTP: timedatectl set-ntp true"
        found = bucket.clock(asked)
    assert found.state == "failed"
    assert "behind this machine" in found.seen


def test_settings_that_contradict_each_other(subject: Make, use: Use) -> None:
    """One address for all, and another one for MLflow alone."""
    use(OPUSCLIP_S3_ENDPOINT_URL="http://127.0.0.1:9")
    found = bucket.place(subject(artifacts=f"s3://{BUCKET}"))
    assert found.state == "warning"
    assert "MLFLOW_S3_ENDPOINT_URL is set to another address" in found.seen


def test_what_cannot_be_deleted_is_named(use: Use) -> None:
    """With its whole name, so that somebody else can."""
    denied = Said(403, "<Error><Code>AccessDenied</Code></Error>")
    with answering({"": Said(200)}) as uri:
        use(MLFLOW_S3_ENDPOINT_URL=uri)
        opened = bucket.opened(f"s3://{BUCKET}/runs")
        with answering({"": denied}) as refusing:
            use(MLFLOW_S3_ENDPOINT_URL=refusing)
            other = bucket.opened(f"s3://{BUCKET}/runs").client
            act = {"delete": lambda: other.delete_object(Bucket=BUCKET, Key="runs/a")}
            found = bucket._tried(act, opened, "runs/a")
    assert found.state == "failed"
    assert found.seen.endswith(f"write work; s3://{BUCKET}/runs/a stays behind")
    assert found.todo == f"allow it s3:DeleteObject on s3://{BUCKET}/runs/*"
