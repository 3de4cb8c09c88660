"""One message is sent once, to whom it may be sent, and what came of it is said without secrets."""

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from opusclip_mlops import posting, webhooks
from opusclip_mlops.posting import Outcome, post
from opusclip_mlops.webhooks import Message, Secret
from tests.journeys import wait_until
from tests.receivers import HANG, RESET, SECRET, Receiver
from tests.servers import free_port

MESSAGE = Message("msg_1", b'{"data": {"number": 1}}')


@pytest.fixture
def told(tmp_path: Path, receiver: Receiver) -> webhooks.Receiver:
    (tmp_path / "secret").write_text(SECRET)
    secret = Secret(path=str(tmp_path / "secret"))
    return webhooks.Receiver(name="bot", url=receiver.url, secret=secret, allow_private=True)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (200, Outcome("told")),
        (204, Outcome("told")),
        (301, Outcome("refused", "answered 301: redirects are not followed")),
        (403, Outcome("refused", "answered 403")),
        (410, Outcome("refused", "answered 410")),
        (408, Outcome("later", "answered 408")),
        (429, Outcome("later", "answered 429", is_about_all=True)),
        (500, Outcome("later", "answered 500")),
        (503, Outcome("later", "answered 503", is_about_all=True)),
        (RESET, Outcome("later", "127.0.0.1: no connection, or it broke off", is_about_all=True)),
    ],
)
def test_the_answer_says_what_becomes_of_it(
    told: webhooks.Receiver, receiver: Receiver, code: int, outcome: Outcome
) -> None:
    """2xx took it; what may pass is for later, the rest is refused; it is sent once."""
    receiver.codes, receiver.headers = [code], {"location": receiver.url}
    assert post(told, MESSAGE) == outcome
    (got,) = receiver.got
    assert (got.body, got.id, got.is_signed()) == (MESSAGE.body, "msg_1", True)


@pytest.mark.parametrize(
    ("value", "low_s", "high_s"),
    [
        ("120", 120, 120),
        ("999999999999", 3600, 3600),
        ("date", 100, 200),
        ("past", 0, 0),
    ],
)
def test_it_waits_as_long_as_it_is_asked_to(
    told: webhooks.Receiver, receiver: Receiver, value: str, low_s: float, high_s: float
) -> None:
    """A number of seconds or a date, an hour at most."""
    dates = {"date": formatdate(posting.time.time() + 180), "past": formatdate(1)}
    receiver.codes, receiver.headers = [429], {"retry-after": dates.get(value, value)}
    wait_s = post(told, MESSAGE).wait_s
    assert wait_s is not None
    assert low_s <= wait_s <= high_s


@pytest.mark.parametrize("value", ["soon", "-5", "inf", "nan", "٣", "9" * 5_000])
def test_rubbish_in_the_wait_is_no_wait(
    told: webhooks.Receiver, receiver: Receiver, value: str
) -> None:
    """Nor is it a fault."""
    receiver.codes, receiver.headers = [503], {"retry-after": value.encode().decode("latin-1")}
    found = post(told, MESSAGE)
    assert (found.result, found.wait_s or 0) in {("later", 0), ("later", 3600.0)}


def test_who_does_not_answer_is_given_up_soon(
    told: webhooks.Receiver, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is said to have been silent."""
    monkeypatch.setattr(posting, "ANSWER_S", 0.2)
    receiver.codes = [HANG]
    found = post(told, MESSAGE)
    assert (found.result, found.is_about_all) == ("later", True)
    assert found.error.startswith("127.0.0.1: no answer in ")


def test_who_answers_byte_by_byte_holds_nobody_up(
    told: webhooks.Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is sent there until the answer is over; then it is."""
    monkeypatch.setattr(posting, "WHOLE_S", 0.5)
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nx-long: ")
                while not is_over.wait(0.05):
                    connection.sendall(b"x")
                connection.sendall(b"\r\ncontent-length: 0\r\n\r\n")

        threading.Thread(target=drip, daemon=True).start()
        slow = replace(told, url=f"http://127.0.0.1:{server.getsockname()[1]}/")
        late = Outcome("later", "127.0.0.1: no whole answer in 0.5 s", is_about_all=True)
        assert post(slow, MESSAGE) == late
        server.close()
        assert post(slow, MESSAGE) == late
        is_over.set()
        wait_until(lambda: "broke off" in post(slow, MESSAGE).error)


def test_who_is_not_there_is_asked_again(told: webhooks.Receiver) -> None:
    """A closed port, and a name that nobody has."""
    for url in (f"http://127.0.0.1:{free_port()}/secret", "http://no.such.host.invalid/secret"):
        found = post(replace(told, url=url), MESSAGE)
        assert (found.result, found.is_about_all) == ("later", True)
        assert "no connection" in found.error
        assert "secret" not in found.error


def test_one_s_own_network_is_reached_only_where_that_is_allowed(
    told: webhooks.Receiver, receiver: Receiver
) -> None:
    """By the address that was connected to, whatever the name says."""
    url = receiver.url.replace("127.0.0.1", "localhost")
    for one in (receiver.url, url):
        found = post(replace(told, url=one, allow_private=False), MESSAGE)
        assert found.error.endswith(
            "its address is not public: allow_private: true lets it through"
        )
    assert receiver.got == []


def test_a_netrc_says_nothing_to_a_receiver(
    told: webhooks.Receiver, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords of the user who runs the server are not sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden-word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    post(told, MESSAGE)
    assert "authorization" not in receiver.got[0].headers


def test_a_certificate_that_nobody_trusts_is_none(told: webhooks.Receiver, tmp_path: Path) -> None:
    """Until its authority is given."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"https://localhost:{server.server_address[1]}/x"
        found = post(replace(told, url=url), MESSAGE)
        assert found.error == "localhost: its certificate is not one that is trusted"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
            assert post(replace(told, url=url), MESSAGE).error == "answered 501"
        server.shutdown()


def test_rubbish_for_an_answer_is_a_fault_that_may_pass(told: webhooks.Receiver) -> None:
    """What answers there is no web server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"SSH-2.0-hello\r\n" * 3)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        found = post(replace(told, url=f"http://127.0.0.1:{server.getsockname()[1]}/"), MESSAGE)
        thread.join(30)
    assert found.result == "later"
