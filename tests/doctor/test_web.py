"""Asking a server: with whose credentials, and why it does not answer."""

import base64
import contextlib
import datetime
import ipaddress
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from opusclip_mlops.doctor import serving, web
from opusclip_mlops.doctor.findings import Finding, Subject, Told
from tests.doctor.answering import Said, answering
from tests.servers import free_port


def fault(uri: str) -> Finding:
    """What is told where a server does not answer."""
    with pytest.raises(Told) as told:
        web.Server(uri).ask("health")
    return told.value.finding


def test_nothing_listens() -> None:
    """The place is named without a password."""
    port = free_port()
    found = fault(f"http://me:correct-horse@127.0.0.1:{port}")
    assert (found.state, found.seen) == ("failed", f"nothing listens on 127.0.0.1:{port}")


def test_no_such_machine() -> None:
    """A name that DNS does not know."""
    assert fault("http://nowhere.invalid:5000").seen == "no machine is called nowhere.invalid:5000"


@contextlib.contextmanager
def silent(*, takes: bool) -> Iterator[str]:
    """Something that takes connections, or not even that, and says nothing; gives its address."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8 if takes else 0)
        for _ in range(0 if takes else 4):
            # What fills the queue: the kernel drops whoever comes after it.
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_nobody_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that does not come about, and one on which nothing is said."""
    monkeypatch.setattr(web, "CONNECT_S", 0.3)
    monkeypatch.setattr(web, "READ_S", 0.3)
    with silent(takes=False) as uri:
        assert "does not answer within" in fault(uri).seen
    with silent(takes=True) as uri:
        assert "says nothing within" in fault(uri).seen


def test_an_address_that_is_none() -> None:
    """It is told as such."""
    assert fault("http://[::1").todo == "compare the address"


def own_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody vouches for, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "certificate.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_certificate_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with the variable to set, and taken once that is set, or checks are off."""
    path = own_certificate(tmp_path)
    with answering({"health": Said(body="OK")}, certificate=path) as uri:
        found = fault(uri)
        assert "certificate that is not trusted" in found.seen
        assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in found.todo
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(path))
        assert web.Server(uri).ask("health").status == 200
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        assert serving.reach(Subject(tracking_uri=uri, journal_dir=path, folder=path)).state == (
            "warning"
        )


def test_credentials_are_those_mlflow_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables, each before MLflow's file; a token where there is no user with a password."""
    assert web.credentials() == {}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    assert web.credentials() == {"Authorization": "Bearer a-token"}
    folder = tmp_path / "home/.mlflow"
    folder.mkdir(parents=True)
    (folder / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = 50%off\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "you")
    said = web.credentials()["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(said) == b"you:50%off"


@pytest.mark.parametrize(
    ("ahead_s", "state"),
    [(0, "ok"), (-1.5, "ok"), (5, "warning"), (-30, "warning"), (90, "failed")],
)
def test_clocks_that_differ(ahead_s: float, state: str) -> None:
    """More than two seconds are warned of, more than a minute fails; both directions are told."""
    now_s = 1_700_000_000.0
    date = formatdate(now_s + ahead_s, usegmt=True)
    found = web.skew_of(date, asked_s=now_s, answered_s=now_s + 0.1, whose="its clock")
    assert found.state == state
    assert ("behind" if ahead_s < 0 else "ahead of") in found.seen


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_a_date_that_is_none_is_a_note(date: str | None) -> None:
    """Nothing can be said then."""
    assert web.skew_of(date, asked_s=1.0, answered_s=1.0, whose="its clock").state == "note"
