"""Facts about a session of blind votes: begun, broken off, gone on with, by several voters."""

import json
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib import request
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from opusclip_mlops import blind_page, blind_voting
from opusclip_mlops.blind_results import BlindResult
from opusclip_mlops.blind_votes import Choice, read_ballots
from opusclip_mlops.blind_voting import Asked, Poll, opened, status, vote, write_page
from opusclip_mlops.errors import PanelError, RegistryError
from opusclip_mlops.panels import Panel
from tests.journeys import store
from tests.panelled import panelled_run

PANEL = Panel(name="kites", prompts=("red", "green", "blue"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with two runs that sampled one panel, and a third."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second", "third"):
        panelled_run(folder, [0, 10], run=name, panel=PANEL)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def asked(uri: str) -> Asked:
    """First against second, voted on by ann."""
    return Asked(run_a="first", run_b="second", panel="kites", voter="ann", tracking_uri=uri)


class Voter:
    """Votes as the page does: for A wherever it is, or a side."""

    def __init__(self, choices: list[str]) -> None:
        self.choices = choices
        self.answers: list[int] = []

    def __call__(self, address: str, poll: Poll) -> None:
        threading.Thread(target=self._vote, args=(address, poll), daemon=True).start()

    def _vote(self, address: str, poll: Poll) -> None:
        todo = [i for i in range(len(poll.sheet.pairs)) if i not in _given(poll)]
        for pair, choice in zip(todo, self.choices, strict=False):
            side = poll.sheet.pairs[pair].a_is if choice == "A" else choice
            self.answers.append(_post(address, "vote", {"pair": pair, "choice": side}))
        _post(address, "finish", {})


def _given(poll: Poll) -> dict[int, Choice]:
    return read_ballots(poll.votes).given(poll.sheet)


def _post(address: str, path: str, content: object) -> int:
    parts = urlsplit(address)
    origin = f"http://{parts.netloc}"
    headers = {"Content-Type": "application/json", "Origin": origin}
    asked = request.Request(f"{origin}/{path}?{parts.query}", json.dumps(content).encode(), headers)
    try:
        return int(request.urlopen(asked, timeout=60).status)
    except request.HTTPError as error:
        return error.code


def voted(asked: Asked, *choices: str, **options: Any) -> BlindResult:
    """A session in which somebody votes so."""
    return vote(asked, tell=Voter(list(choices)), **options)


def test_votes_are_kept_counted_and_logged(asked: Asked, tmp_path: Path) -> None:
    """The verdict so far, a private file in this folder, a tag on both runs."""
    found = voted(asked, "A", "A", "tie")
    assert (found.preference.votes_a, found.preference.ties) == (2, 1)
    assert (found.a.called, found.a.step, found.b.called) == ("first", 10, "second")
    (file,) = tmp_path.glob("*.jsonl")
    assert file.name.startswith(f"ab-{PANEL.title}-{found.a.run_id[:8]}-10-{found.b.run_id[:8]}-10")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    client = MlflowClient(asked.tracking_uri)
    for one in (found.a, found.b):
        tags = client.get_run(one.run_id).data.tags
        assert tags[f"opusclip.ab.{found.session}"] == found.sentence
    assert status(file) == found


def test_who_comes_back_goes_on(asked: Asked, tmp_path: Path) -> None:
    """The same pairs in the same order, what was voted stands; then another voter has a turn."""
    votes = tmp_path / "votes.jsonl"
    asked = replace(asked, votes=votes)
    voted(asked, "A", logs=False)
    assert len(read_ballots(votes).sheets) == 1
    found = voted(asked, "A", "A", logs=False)
    assert found.preference.votes_a == 3
    with pytest.raises(PanelError, match=r"ann has voted on all pairs in .*: let another"):
        voted(asked)
    both = voted(replace(asked, voter="bob"), "tie", "tie", "tie", logs=False)
    assert [one.name for one in both.voters] == ["ann", "bob"]
    assert both.preference.n == 6
    assert len(read_ballots(votes).sheets) == 2


def test_another_comparison_needs_another_file(asked: Asked, tmp_path: Path) -> None:
    """Votes on other runs, steps or sides are not mixed; the file stays as it is."""
    votes = tmp_path / "votes.jsonl"
    asked = replace(asked, votes=votes, seed=4)
    voted(asked, "A", logs=False)
    before = votes.read_bytes()
    for other in (
        replace(asked, run_b="third"),
        replace(asked, run_a="second", run_b="first"),
        replace(asked, steps=(0, 10)),
    ):
        with pytest.raises(PanelError, match=r"holds votes on run .*: name another file"):
            voted(other, "A", logs=False)
    with pytest.raises(PanelError, match="was begun with another seed"):
        voted(replace(asked, seed=5), logs=False)
    assert votes.read_bytes() == before
    assert read_ballots(votes).session.seed == 4


def test_votes_that_cannot_be_kept_end_in_an_error(asked: Asked, tmp_path: Path) -> None:
    """The page is told, and so is who gave the command."""
    votes = tmp_path / "votes.jsonl"
    asked = replace(asked, votes=votes)
    aside = tmp_path / "aside"

    def take_away(address: str, poll: Poll) -> None:
        votes.rename(aside)
        votes.mkdir()
        Voter(["A"])(address, replace(poll, votes=aside))

    with pytest.raises(PanelError, match="cannot be written: Is a directory"):
        vote(asked, tell=take_away)


def test_a_port_that_is_taken_is_told(asked: Asked) -> None:
    """In one line, with the port."""

    def again(address: str, poll: Poll) -> None:
        port = urlsplit(address).port or 0
        other = replace(asked, votes=poll.votes.with_name("other.jsonl"))
        try:
            with pytest.raises(PanelError, match=f"cannot listen on port {port}: Address already"):
                vote(other, tell=Voter([]), port=port, logs=False)
        finally:
            Voter([])(address, poll)

    vote(asked, tell=again, logs=False)


def test_no_vote_is_not_logged(asked: Asked) -> None:
    """A session that was opened and closed leaves nothing in MLflow."""
    found = voted(asked)
    tags = MlflowClient(asked.tracking_uri).get_run(found.a.run_id).data.tags
    assert f"opusclip.ab.{found.session}" not in tags


def test_a_page_for_elsewhere_and_what_it_saved(asked: Asked, tmp_path: Path) -> None:
    """The page is private, the votes come back by a file, and are logged when asked."""
    page, saved = tmp_path / "page.html", tmp_path / "saved.jsonl"
    poll = write_page(replace(asked, voter="eve"), page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert poll.sheet.id in page.read_text()
    assert not poll.page.exists()
    lines = [
        {"kind": "vote", "sheet": poll.sheet.id, "pair": i, "choice": "tie", "timestamp_ms": i + 1}
        for i in range(3)
    ]
    saved.write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = status(poll.votes, saved=(saved,), logs=True, tracking_uri=asked.tracking_uri)
    assert (found.preference.ties, found.voters[0].name) == (3, "eve")
    tags = MlflowClient(asked.tracking_uri).get_run(found.b.run_id).data.tags
    assert f"opusclip.ab.{found.session}" in tags
    with pytest.raises(PanelError, match="cannot be written: No such file"):
        write_page(replace(asked, voter="mal"), tmp_path / "none" / "page.html")


def test_a_result_that_cannot_be_logged_costs_no_vote(asked: Asked, tmp_path: Path) -> None:
    """What is wrong, and how to log it later."""
    found = voted(asked, "A", logs=False)
    (votes,) = tmp_path.glob("*.jsonl")
    with pytest.raises(RegistryError, match=r"cannot log the votes .* kept: opusclip ab"):
        status(votes, logs=True, tracking_uri=store(tmp_path))
    assert status(votes, logs=True, tracking_uri=asked.tracking_uri) == found


def test_no_page_or_sheet_says_who_is_where(asked: Asked) -> None:
    """Neither names, ids and steps of runs, nor where clips came from, nor the seed."""
    with opened(replace(asked, seed=987654321)) as poll:
        text = poll.page.read_text()
        content = text.rpartition('id="content">')[2].partition("</script>")[0]
        for hidden in (
            "first", "second", "a_is", "987654321", poll.session.id, poll.session.a.run_id,
            poll.session.b.run_id, *[one.cell for one in poll.sheet.pairs],
        ):  # fmt: skip
            assert hidden not in content
        assert stat.S_IMODE(poll.page.parent.stat().st_mode) == 0o700


def test_pairs_that_fit_no_page_are_left_out(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as do are shown, in the order drawn for this voter, and the others said."""
    monkeypatch.setattr(blind_voting, "fits", lambda pairs: len(pairs) < 3)
    with opened(asked) as poll:
        assert len(poll.sheet.pairs) == 2
        assert poll.notes == ("1 pairs are left out: the page would be too long.",)
        assert len(read_ballots(poll.votes).sheets[poll.sheet.id].pairs) == 2
    assert blind_page.fits([])


def test_a_voter_needs_a_name(asked: Asked) -> None:
    """One of spaces is none; where none is given it is who runs this."""
    with pytest.raises(PanelError, match="name is empty"), opened(replace(asked, voter=" ")):
        pass
    with opened(replace(asked, voter=None)) as poll:
        assert poll.sheet.voter
