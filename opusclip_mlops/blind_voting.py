"""A session of blind votes: two runs, one panel, one voter, from the first pair to the verdict."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.blind_page import PairOfClips, fits, write_voting_page
from opusclip_mlops.blind_results import BlindResult, result_of
from opusclip_mlops.blind_runs import BlindPanel, blind_panel, log_result, unlike
from opusclip_mlops.blind_server import serving
from opusclip_mlops.blind_votes import (
    Choice,
    Session,
    Sheet,
    append,
    cast_now,
    new_session,
    new_sheet,
    read_ballots,
    take_saved,
)
from opusclip_mlops.decisions import present_actor
from opusclip_mlops.errors import PanelError, RegistryError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.significance.preferences import MINIMUM_EFFECT
from opusclip_mlops.walls import Show

_ID_DIGITS = 8
_SEEDS = 2**31
_LONGEST_VOTER = 64

Address = Callable[[str, "Poll"], None]
"""Is told where the page can be opened, once it can be."""


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What one voter is to vote on.

    Attributes:
        votes: The file of votes.
        session: What is compared.
        sheet: The pairs that this voter is shown.
        page: The page's file, gone when the session is over.
        notes: What the voter may know beforehand; a sentence each.
    """

    votes: Path
    session: Session
    sheet: Sheet
    page: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody wants to vote on.

    Attributes:
        run_a: Id, name or unique beginning.
        run_b: Another run.
        panel: The panel's name, or its title.
        steps: Of A and of B; the last of each when None.
        votes: The file of votes; one by the panel and the runs in this folder when None.
        voter: Who votes, who runs this process when None.
        seed: Of a new file's drawing; any when None.
        tracking_uri: Where the runs are, MLflow's default when None.
    """

    run_a: str
    run_b: str
    panel: str
    steps: tuple[int, int] | None = None
    votes: Path | None = None
    voter: str | None = None
    seed: int | None = None
    tracking_uri: str | None = None


def vote(
    asked: Asked,
    *,
    tell: Address,
    minimum_effect: float = MINIMUM_EFFECT,
    port: int = 0,
    logs: bool = True,
    show: Show = lambda *_: None,
) -> BlindResult:
    """Let somebody vote in a browser, until the voter is done or Ctrl-C; then say what came of it.

    Each vote is on disk before the next pair is shown. Who comes back goes on where they stopped;
    other voters vote into the same file, each in an order of their own.

    Args:
        asked: What is voted on.
        tell: Is told the page's address.
        minimum_effect: How far from 1/2 a preference lies that matters.
        port: Where to listen on 127.0.0.1; 0 for any that is free.
        logs: Whether the result is logged to both runs.
        show: Is told what is being done.

    Raises:
        RegistryError: No such run, or MLflow did not answer.
        PanelError: Panels that differ, nothing to vote on, a file of other votes, a full disk.
    """
    with contextlib.ExitStack() as stack:
        poll = stack.enter_context(opened(asked, show=show))
        box = _Box(poll)
        try:
            address = stack.enter_context(serving(poll.page, box, port=port))
        except OSError as error:
            raise PanelError(f"cannot listen on port {port}: {error.strerror}") from error
        tell(address, poll)
        with contextlib.suppress(KeyboardInterrupt):
            box.done.wait()
        if box.problem:
            raise box.problem
        return status(
            poll.votes, minimum_effect=minimum_effect, logs=logs, tracking_uri=asked.tracking_uri
        )


def write_page(asked: Asked, file: Path, *, show: Show = lambda *_: None) -> Poll:
    """Write the page for a voter elsewhere; it saves the votes as a file, for `status` to take.

    Raises:
        RegistryError: As `vote`.
        PanelError: As `vote`; or the page cannot be written.
    """
    with opened(asked, show=show) as poll:
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as made:
                made.write(poll.page.read_bytes())
            temporary.replace(file)
        except OSError as error:
            raise PanelError(f"{file} cannot be written: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return poll


def status(
    votes: Path,
    *,
    minimum_effect: float = MINIMUM_EFFECT,
    saved: tuple[Path, ...] = (),
    logs: bool = False,
    tracking_uri: str | None = None,
) -> BlindResult:
    """Say what the votes in a file say so far; as often as one likes, looking early is no harm.

    Args:
        votes: The file of votes.
        minimum_effect: How far from 1/2 a preference lies that matters.
        saved: Files that pages without a server saved; their votes are added first.
        logs: Whether the result is logged to both runs; without a vote it is not.
        tracking_uri: Where the runs are, MLflow's default when None.

    Raises:
        PanelError: A file that cannot be read, or holds other votes.
        RegistryError: It cannot be logged.
    """
    for one in saved:
        take_saved(votes, one)
    result = result_of(read_ballots(votes), minimum_effect=minimum_effect)
    if logs and result.preference.n:
        try:
            log_result(client_of(tracking_uri, None), result)
        except RegistryError as error:
            raise RegistryError(
                f"{error}; the votes are kept: opusclip ab --status {votes} --log"
            ) from error
    return result


@contextlib.contextmanager
def opened(asked: Asked, *, show: Show = lambda *_: None) -> Iterator[Poll]:
    """Find the runs, draw the voter's sheet where there is none, and make the page.

    Raises:
        RegistryError: As `vote`.
        PanelError: As `vote`.
    """
    with tempfile.TemporaryDirectory(prefix="opusclip-ab-") as name:
        folder = Path(name)
        with told_in_one_line("cannot read the samples"):
            client = client_of(asked.tracking_uri, None)
            found = blind_panel(
                client, asked.run_a, asked.run_b, panel=asked.panel, steps=asked.steps,
                folder=folder, show=show,
            )  # fmt: skip
            path = asked.votes or Path(_file_name(found))
            drawn = _drawn(path, found, asked)
            shown = _pairs(found, drawn.sheet, show)
        sheet = msgspec.structs.replace(drawn.sheet, pairs=drawn.sheet.pairs[: len(shown)])
        page = folder / "page.html"
        title = found.panel.name
        write_voting_page(page, shown, panel=title, sheet=sheet.id, given=drawn.given)
        append(path, [*drawn.lacking, *([] if drawn.is_begun else [sheet])])
        notes = [*found.notes, *unlike([(one.left, one.right) for one in shown])]
        if left := len(drawn.sheet.pairs) - len(shown):
            notes.append(f"{left} pairs are left out: the page would be too long.")
        yield Poll(votes=path, session=drawn.session, sheet=sheet, page=page, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """The session of a file and the sheet of a voter, and what of them the file lacks yet."""

    session: Session
    sheet: Sheet
    given: Mapping[int, Choice] = field(default_factory=dict)
    lacking: tuple[Session, ...] = ()
    is_begun: bool = False


def _drawn(path: Path, found: BlindPanel, asked: Asked) -> _Drawn:
    voter = one_line(asked.voter or present_actor().name, at_most=_LONGEST_VOTER)
    if not voter:
        raise PanelError("the voter's name is empty")
    if not path.exists():
        session = _new(found, asked.seed)
        return _Drawn(session=session, sheet=new_sheet(session, voter), lacking=(session,))
    ballots = read_ballots(path)
    session = ballots.session
    _check_same(path, session, found, asked.seed)
    sheet = ballots.sheet_of(voter)
    if sheet is None:
        return _Drawn(session=session, sheet=new_sheet(session, voter))
    given = ballots.given(sheet)
    if len(given) == len(sheet.pairs):
        raise PanelError(
            f"{voter} has voted on all pairs in {path}: let another --voter vote, or ask for "
            "--status"
        )
    return _Drawn(session=session, sheet=sheet, given=given, is_begun=True)


def _new(found: BlindPanel, seed: int | None) -> Session:
    return new_session(
        panel=found.panel.title,
        panel_digest=found.panel.digest,
        cells=found.cells,
        a=found.a,
        b=found.b,
        seed=secrets.randbelow(_SEEDS) if seed is None else seed,
    )


def _check_same(path: Path, session: Session, found: BlindPanel, seed: int | None) -> None:
    """A file of votes is about two runs at two steps and one panel, and its sides are drawn."""
    before = [(one.run_id, one.step) for one in (session.a, session.b)]
    now = [(one.run_id, one.step) for one in (found.a, found.b)]
    if (before, session.panel_digest) != (now, found.panel.digest):
        what = ", ".join(f"run {run} step {step}" for run, step in before)
        raise PanelError(f"{path} holds votes on {what}, panel {session.panel}: name another file")
    if seed not in (None, session.seed):
        raise PanelError(f"{path} was begun with another seed: leave --seed out")
    if gone := [one for one in session.cells if one not in found.cells]:
        raise PanelError(f"cell {gone[0]} of {path} has no clip by both runs any more")


def _pairs(found: BlindPanel, sheet: Sheet, show: Show) -> list[PairOfClips]:
    """The sheet's pairs, as many as a page can hold."""
    prompts = {one.name: one.prompt for one in found.panel.cells}
    pairs: list[PairOfClips] = []
    for number, shown in enumerate(sheet.pairs):
        show("fetching clips", number, len(sheet.pairs))
        first, second = found.clips_of(shown.cell)
        left, right = (first, second) if shown.a_is == "left" else (second, first)
        pairs.append(PairOfClips(prompt=prompts[shown.cell], left=left, right=right))
        if not fits(pairs):
            return pairs[:-1]
    return pairs


def _file_name(found: BlindPanel) -> str:
    runs = "-".join(f"{one.run_id[:_ID_DIGITS]}-{one.step}" for one in (found.a, found.b))
    return f"ab-{found.panel.title}-{runs}.jsonl"


class _Box:
    """Keeps the votes of one sheet on disk."""

    def __init__(self, poll: Poll) -> None:
        self._poll = poll
        self.done = threading.Event()
        self.problem: PanelError | None = None

    def vote(self, pair: int, choice: Choice) -> bool:
        """Keep a vote; False where there is no such pair, or the disk is full."""
        sheet = self._poll.sheet
        if not 0 <= pair < len(sheet.pairs):
            return False
        try:
            append(self._poll.votes, [cast_now(sheet, pair, choice)])
        except PanelError as error:
            self.problem = error
            return False
        self.problem = None
        return True

    def finish(self) -> None:
        """The voter is done."""
        self.done.set()
