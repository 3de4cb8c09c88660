"""Facts about who may read the page and vote: the browser that was given the address."""

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from opusclip_mlops.blind_server import serving
from opusclip_mlops.blind_votes import Choice
from tests.journeys import wait_until


class Votes:
    """Keeps votes on three pairs."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, Choice]] = []
        self.is_finished = False

    def vote(self, pair: int, choice: Choice) -> bool:
        self.kept.append((pair, choice))
        return pair < 3

    def finish(self) -> None:
        self.is_finished = True


class Site:
    """A page that is served, and who asks for it."""

    def __init__(self, address: str, box: Votes) -> None:
        parts = urlsplit(address)
        self.host, self.query, self.box = parts.netloc, f"?{parts.query}", box

    def ask(
        self,
        method: str = "POST",
        path: str = "/vote",
        *,
        query: str | None = None,
        body: object = {"pair": 1, "choice": "left"},
        **headers: str,
    ) -> tuple[int, bytes, dict[str, str]]:
        """The answer, by default to a vote as the page sends it; a header "" is left out."""
        sent = {
            "Host": self.host,
            "Origin": f"http://{self.host}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        asked = http.client.HTTPConnection(self.host, timeout=60)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        target = path + (self.query if query is None else query)
        asked.request(method, target, text, {k: v for k, v in sent.items() if v})
        answer = asked.getresponse()
        content = answer.read()
        asked.close()
        return answer.status, content, dict(answer.getheaders())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of a small page."""
    page = tmp_path_factory.mktemp("page") / "page.html"
    page.write_text("<p>hello")
    box = Votes()
    with serving(page, box) as address:
        assert address.startswith("http://127.0.0.1:")
        yield Site(address, box)


@pytest.fixture(autouse=True)
def _nothing_voted(site: Site) -> None:
    site.box.kept.clear()
    site.box.is_finished = False


def test_the_address_opens_the_page(site: Site) -> None:
    """Nothing keeps it, nothing frames it, no address of it is passed on."""
    status, content, headers = site.ask("GET", "/", Origin="")
    assert (status, content) == (200, b"<p>hello")
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "Python" not in headers["Server"]


def test_the_page_votes_and_finishes(site: Site) -> None:
    """What it sends is kept before it is answered."""
    assert site.ask()[0] == 200
    assert site.ask(body={"pair": 0, "choice": "undone"})[0] == 200
    assert site.box.kept == [(1, "left"), (0, "undone")]
    assert site.ask(path="/finish", body={})[0] == 200
    # The answer comes first, so that the page has it.
    wait_until(lambda: site.box.is_finished)


def test_a_vote_that_was_not_kept_is_not_answered_as_one(site: Site) -> None:
    """The page says so, and stays where it is."""
    assert site.ask(body={"pair": 7, "choice": "left"})[0] == 400


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?other=1", "?token=%C3%A9"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/vote"), ("POST", "/finish")])
def test_without_the_token_nothing_is_answered(
    site: Site, method: str, path: str, query: str
) -> None:
    """Not even whether there is such a page."""
    status, content, _ = site.ask(method, path, query=query)
    assert (status, content) == (403, b"")
    assert (site.box.kept, site.box.is_finished) == ([], False)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1"])
def test_another_name_for_this_machine_is_refused(site: Site, host: str) -> None:
    """A site that has its own name point here is not let in, with the token even."""
    assert site.ask("GET", "/", Host=host)[0] == 403
    assert site.ask(Host=host, Origin=f"http://{host}")[0] == 403
    assert site.box.kept == []


@pytest.mark.parametrize("origin", ["", "null", "http://evil.example", "https://127.0.0.1:1"])
def test_another_sites_page_cannot_vote(site: Site, origin: str) -> None:
    """Only a page from here asks from here."""
    assert site.ask(Origin=origin)[0] == 403
    assert site.ask(path="/finish", Origin=origin)[0] == 403
    assert (site.box.kept, site.box.is_finished) == ([], False)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_form_cannot_vote(site: Site, kind: str) -> None:
    """What browsers send to other sites without asking first is refused."""
    assert site.ask(Content_Type=kind)[0] == 403
    assert site.box.kept == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"\xff",
        {"pair": 1},
        {"pair": 1, "choice": "A"},
        {"pair": "1", "choice": "tie"},
        {"pair": 1, "choice": "tie", "more": 1},
    ],
)
def test_what_is_no_vote_is_refused(site: Site, body: object) -> None:
    """Nothing of it is kept."""
    assert site.ask(body=body)[0] == 400
    assert site.box.kept == []


@pytest.mark.parametrize("length", ["-1", "5000", "99999999999999999999", "many"])
def test_a_long_vote_is_not_read(site: Site, length: str) -> None:
    """However long it says it is."""
    assert site.ask(Content_Length=length)[0] == 413
    assert site.box.kept == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/vote"), ("GET", "/../etc/passwd"), ("POST", "/")]
)
def test_there_is_nothing_else(site: Site, method: str, path: str) -> None:
    """One page, two things to send."""
    assert site.ask(method, path)[0] == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_no_address_is_answered(
    site: Site, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With or without the token, and nothing is printed."""
    for query in ("", site.query):
        assert site.ask(method, "http://[x/", query=query)[:2] == (400, b"")
    assert capfd.readouterr() == ("", "")


def test_nothing_is_logged(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """The token is in each address."""
    site.ask("GET", "/")
    site.ask(query="?token=wrong")
    assert capfd.readouterr() == ("", "")


def test_a_browser_that_goes_away_is_no_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a long page; nothing is printed, and the next one is answered."""
    page = tmp_path / "page.html"
    with page.open("wb") as file:
        file.truncate(64 * 2**20)
    with serving(page, Votes()) as address:
        parts = urlsplit(address)
        gone = socket.create_connection(("127.0.0.1", parts.port or 0))
        line = f"GET /?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        gone.sendall(line.encode())
        assert gone.recv(100).startswith(b"HTTP/1.0 200")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        assert Site(address, Votes()).ask()[0] == 200
    assert capfd.readouterr() == ("", "")


def test_it_listens_on_this_machine_alone_and_ends(tmp_path: Path) -> None:
    """After the block nobody answers; the port that was asked for is taken while it runs."""
    page = tmp_path / "page.html"
    page.write_text("x")
    with serving(page, Votes()) as address:
        port = urlsplit(address).port
        assert port
        with pytest.raises(OSError, match="in use"), serving(page, Votes(), port=port):
            pass
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", port).request("GET", "/")
