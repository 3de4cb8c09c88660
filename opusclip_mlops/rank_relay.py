"""Carries what ranks log on one machine to the machine that owns their run, as files of the run.

    opusclip/ranks/node-<n>-<host>-<mark>/<block>/<number>-<crc32>.bin

A file holds whole frames of a journal. The machine that sends writes them one after the other into
an `Outbox`: a file's content is settled before it is sent, so that it is the same however often
that is tried. The machine that owns the run appends them to journals of the run's folder, each at
the place that the sizes of those before it give: done again, it changes nothing.
"""

import os
import re
import socket
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops import accounting, journal
from opusclip_mlops.accounting import Totals, as_account, is_told, totals
from opusclip_mlops.errors import RecordError
from opusclip_mlops.flight import boot_id
from opusclip_mlops.folder import CONTROL, Manifest, RunFolder, write_whole
from opusclip_mlops.layout import LOCAL_ID_TAG, RANKS
from opusclip_mlops.listing import download, problem_with
from opusclip_mlops.records import (
    Metrics,
    RankMetrics,
    Record,
    RunEnded,
    RunStarted,
    Tags,
    Text,
)
from opusclip_mlops.sessions import ELSEWHERE

PART_BYTES = 2**20
"""A file of this size is sent at once."""
BLOCK_FILES = 256
"""How many files lie in one folder: all of it is listed to find the next."""
MOST_FILES = 64
"""How many files of one machine are taken at once."""

_CARRIED = RunStarted | Metrics | RankMetrics | Tags | Text | RunEnded
_ACCOUNT_KEY = "opusclip/ranks/left_out"
_MOST_BYTES = 2 * journal.MAX_PAYLOAD_BYTES
_HOST_CHARACTERS = 60
_NODE = re.compile(r"node-\d{1,6}-[A-Za-z0-9.\-]{0,60}-[0-9a-f]{8}")
_FILE = re.compile(r"(\d{6,12})-([0-9a-f]{8})\.bin")
_SESSION = re.compile(r"[^/\0]{1,240}")


def owners_run(client: MlflowClient, manifest: Manifest) -> Run | None:
    """The run of a folder as the machine that owns it has made it, None while it has not."""
    if manifest.run_id:
        return client.get_run(manifest.run_id)
    experiment_id = manifest.experiment_id
    if not experiment_id:
        experiment = client.get_experiment_by_name(manifest.experiment_name or "Default")
        if experiment is None:
            return None
        experiment_id = str(experiment.experiment_id)
    return run_by_local_id(client, experiment_id, manifest.local_id)


def run_by_local_id(client: MlflowClient, experiment_id: str, local_id: str) -> Run | None:
    """The run that was made for the folders of this local id."""
    tag = f"tags.`{LOCAL_ID_TAG}` = '{local_id}'"
    return next(iter(client.search_runs([experiment_id], tag, max_results=1)), None)


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """How far a machine's records are sent.

    `node` names its folder; `number` is that of the file that is being filled, which has
    `size_bytes` and is filled no further once it `is_closed`. `told` holds, by session, the end
    that was put into a file. After the machine was started anew, which `boot` tells, nothing is
    sure of what was sent last: a folder of a new name is begun.
    """

    node: str
    boot: str = ""
    number: int = 0
    size_bytes: int = 0
    is_closed: bool = False
    told: dict[str, str] = {}


def begun(known: object, *, number: int) -> Sending:
    """Go on sending as `known` says, a plain copy of an earlier state; empty for a new one.

    Args:
        known: What `msgspec.to_builtins` gave of the state.
        number: The machine's number among those that train together.
    """
    boot = boot_id()
    if known:
        sending = msgspec.convert(known, Sending)
        if sending.boot == boot:
            return sending
    host = re.sub(r"[^A-Za-z0-9.\-]", "-", socket.gethostname())[:_HOST_CHARACTERS]
    return Sending(node=f"node-{number}-{host}-{uuid.uuid4().hex[:8]}", boot=boot)


class Outbox:
    """The files that a machine is to send, on its disk until they are sent.

    Args:
        folder: The run's.
        sending: How far they are sent.
    """

    def __init__(self, folder: RunFolder, sending: Sending) -> None:
        self._folder = folder
        self._path = folder.path / "relay"
        self._path.mkdir(mode=0o700, exist_ok=True)
        self.sending = sending

    def add(self, records: Iterable[Record]) -> bool:
        """Put those that are carried into the file that is being filled; whether there were any.

        Raises:
            OSError: the disk cannot take them.
        """
        carried = (one for one in records if isinstance(one, _CARRIED) and not is_told(one))
        content = b"".join(map(journal.framed, carried))
        if content:
            _put(self._file(), content, at_bytes=self.sending.size_bytes)
            size_bytes = self.sending.size_bytes + len(content)
            self.sending = msgspec.structs.replace(self.sending, size_bytes=size_bytes)
        return bool(content)

    def note_end(self, end: RunEnded) -> None:
        """Put a session's end into the file, with what this machine has left out so far.

        Raises:
            OSError: an account cannot be read, or the disk cannot take it.
        """
        left_out = msgspec.json.encode(totals(self._folder.path)).decode()
        self.add([Text(0, 0, _ACCOUNT_KEY, left_out), end])
        told = {**self.sending.told, end.session: said(end)}
        self.sending = msgspec.structs.replace(self.sending, told=told)

    def close(self) -> None:
        """Fill the file no further: once that is kept it may be sent."""
        self.sending = msgspec.structs.replace(self.sending, is_closed=True)

    def send(self, repository: ArtifactRepository) -> None:
        """Send the closed file, under the same name each time, and begin the next.

        Raises:
            Any fault of the artifact store.
        """
        content = self._content()
        number = self.sending.number
        named = self._path / f"{number:06d}-{zlib.crc32(content):08x}.bin"
        _put(named, content, at_bytes=0)
        repository.log_artifact(str(named), f"{RANKS}/{self.sending.node}/{_block(number)}")
        named.unlink()
        self.sending = msgspec.structs.replace(
            self.sending, number=number + 1, size_bytes=0, is_closed=False
        )

    def forget_sent(self) -> None:
        """Remove the files before this one; only once it is kept that they were sent."""
        for path in self._path.glob("*.part"):
            if path != self._file():
                path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        with self._file().open("rb") as file:
            return file.read(self.sending.size_bytes)

    def _file(self) -> Path:
        return self._path / f"{self.sending.node}-{self.sending.number:06d}.part"


def said(end: RunEnded) -> str:
    """An end in one word that another end of the session has not."""
    return f"{end.status} {zlib.crc32(end.reason.encode()):08x}"


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """How far the files of one machine are taken.

    `number` is that of the next; the bytes are what is written of records, and of starts and ends;
    `heard_ms` is when its last file was taken, in Unix milliseconds.
    """

    number: int = 0
    records_bytes: int = 0
    control_bytes: int = 0
    heard_ms: int = 0


class Inbox:
    """Takes what other machines have sent into the run's folder, once each.

    Args:
        folder: The run's, on the machine that owns it.
        repository: Where its artifacts lie.
        taken: How far the files of each machine are taken, by its name.
    """

    def __init__(
        self, folder: RunFolder, repository: ArtifactRepository, taken: dict[str, Taken]
    ) -> None:
        self._folder, self.repository = folder, repository
        self.taken = taken
        self.unreadable: dict[str, str] = {}
        """By the name of a machine: which of its files cannot be read now, and why."""

    def look(self, *, now_ms: int) -> bool:
        """Take what is new, of each machine at most `MOST_FILES`; whether there was anything.

        Raises:
            Any fault of the artifact store, and of the disk.
        """
        nodes = [one for one in self._listed(RANKS) if _NODE.fullmatch(one)]
        # Of each machine, whatever came of the one before.
        news = [self._take_of(node, now_ms) for node in sorted(nodes)]
        return any(news)

    def sessions_of(self, node: str) -> set[str]:
        """The sessions that a machine has told of."""
        records = (one for path in self._segments(node, CONTROL) for one in journal.read(path))
        entries = (one.record for one in records if isinstance(one, journal.Entry))
        return {one.session for one in entries if isinstance(one, RunStarted)}

    def _take_of(self, node: str, now_ms: int) -> bool:
        first = self.taken.get(node, Taken()).number
        while self.taken.get(node, Taken()).number < first + MOST_FILES:
            number = self.taken.get(node, Taken()).number
            if not self._take_in_block(node, now_ms) or _block(number) == _block(
                self.taken[node].number
            ):
                break
        return self.taken.get(node, Taken()).number > first

    def _take_in_block(self, node: str, now_ms: int) -> bool:
        """Take the next files of one block, as far as they are there; whether there were any."""
        before = self.taken.get(node, Taken())
        block = f"{RANKS}/{node}/{_block(before.number)}"
        listed = self._listed(block)
        found = {
            int(one[1]): _Sent(f"{block}/{one[0]}", one[2], listed[one[0]])
            for one in map(_FILE.fullmatch, listed)
            if one
        }
        for number in range(before.number, before.number + MOST_FILES):
            if number not in found or not self._is_taken(node, found[number], now_ms):
                break
        return self.taken.get(node, before) != before

    def _is_taken(self, node: str, sent: "_Sent", now_ms: int) -> bool:
        try:
            records = self._fetched(sent)
        except RecordError as error:
            if self.unreadable.get(node) != str(error):
                print(error, flush=True)
            self.unreadable[node] = str(error)
            return False
        self.unreadable.pop(node, None)
        self._append(node, records, now_ms)
        return True

    def _append(self, node: str, records: Sequence[Record], now_ms: int) -> None:
        before = self.taken.get(node, Taken())
        for left_out in filter(None, map(_left_out, records)):
            write_whole(self._path(node, accounting.SUFFIX), as_account(left_out))
        control = [one for one in records if isinstance(one, RunStarted | RunEnded)]
        others = [one for one in records if not isinstance(one, RunStarted | RunEnded)]
        others = [one for one in others if not _left_out(one)]
        self.taken[node] = Taken(
            number=before.number + 1,
            # Behind the records: an end that is known says that all before it is there.
            records_bytes=self._written(node, "", others, before.records_bytes),
            control_bytes=self._written(node, CONTROL, control, before.control_bytes),
            heard_ms=now_ms,
        )

    def _written(self, node: str, kind: str, records: Sequence[Record], at_bytes: int) -> int:
        """Write records at this place of a machine's journal; where the next begin."""
        content = b"".join(map(journal.framed, records))
        if content:
            _put(self._segment(node, kind), content, at_bytes=at_bytes)
        return at_bytes + len(content)

    def _segment(self, node: str, kind: str) -> Path:
        return self._path(node, f"{kind}-000000{journal.SUFFIX}")

    def _path(self, node: str, ending: str) -> Path:
        name = ELSEWHERE + node.removeprefix(ELSEWHERE[1:])
        return self._folder.path / f"{name}{ending}"

    def _segments(self, node: str, kind: str) -> list[Path]:
        path = self._segment(node, kind)
        return [path] if path.exists() else []

    def _listed(self, folder: str) -> dict[str, int]:
        """What lies in a folder of the run's artifacts: sizes by name, 0 where that is unknown."""
        entries = self.repository.list_artifacts(folder)
        known = [one for one in entries if not problem_with(one, folder)]
        return {one.path.rpartition("/")[2]: int(one.file_size or 0) for one in known}

    def _fetched(self, sent: "_Sent") -> list[Record]:
        """The records of a file.

        Raises:
            RecordError: it is not whole, or holds what is not carried.
        """
        path, local = sent.path, self._folder.path / "relay.fetched"
        _check_size(path, sent.size_bytes)
        download(self.repository, path, local)
        try:
            # What it has come to since, or where its size was not told.
            _check_size(path, local.stat().st_size)
            if f"{zlib.crc32(local.read_bytes()):08x}" != sent.checksum:
                raise RecordError(f"{path} is not whole: its content is not what its name says")
            return list(_unpacked(local, path))
        finally:
            local.unlink()


@dataclass(frozen=True)
class _Sent:
    """A file of another machine as it is listed."""

    path: str
    checksum: str
    size_bytes: int


def _check_size(path: str, size_bytes: int) -> None:
    if size_bytes > _MOST_BYTES:
        raise RecordError(f"{path} is left: it is larger than {_MOST_BYTES:,} bytes")


def _unpacked(file: Path, path: str) -> Iterator[Record]:
    for item in journal.read(file, ended=True):
        record = item.record if isinstance(item, journal.Entry) else None
        is_named = not isinstance(record, RunStarted | RunEnded) or _SESSION.fullmatch(
            record.session
        )
        if not isinstance(record, _CARRIED) or not is_named:
            raise RecordError(f"{path} is left: it holds what no machine sends")
        yield record


def _left_out(record: Record) -> Totals | None:
    """What a machine says that it left out, None of what is no such record."""
    if not isinstance(record, Text) or record.key != _ACCOUNT_KEY:
        return None
    try:
        return msgspec.json.decode(record.text, type=Totals)
    except msgspec.DecodeError:
        return None


def _block(number: int) -> str:
    return f"{number // BLOCK_FILES:04d}"


def _put(path: Path, content: bytes, *, at_bytes: int) -> None:
    """Write a content at a place of a file, and have it on the disk.

    Raises:
        OSError: the disk cannot take it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], at_bytes + done)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
