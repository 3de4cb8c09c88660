"""The folder of a launch: what is to be run, what its nodes said, and how it ended."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import gethostname
from typing import BinaryIO, TypeVar

import msgspec

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import write_whole
from opusclip_mlops.launching.outcomes import AgentOutcome, Ending
from opusclip_mlops.launching.settings import LaunchConfig
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.slots import read_slot, write_slot

LAUNCHES = ".opusclip/launches"
"""Where launches lie in a project's folder, unless the configuration says otherwise."""

PLACE_TAG = "opusclip.launch"
"""The tag by which a run says what launched it and where that lies."""

_RESERVED = "ended.reserved"
_RESERVED_BYTES = 4000  # one block, with what stands before it

S = TypeVar("S", bound=msgspec.Struct)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: enough for a node that was not there when it was launched.

    Attributes:
        run_id: The MLflow run that the ranks log to.
        experiment_id: Its experiment.
        tracking_uri: Where it is; None where the address holds a password and is in the
            environment only.
        cwd: The project's folder.
        program: What torchrun starts, see `commands.program_of`.
        config: How, and where.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str | None
    cwd: str
    program: list[str]
    config: LaunchConfig

    @property
    def environment(self) -> dict[str, str]:
        """What the ranks find in their environment; nothing in it is secret."""
        uri = {} if self.tracking_uri is None else {"MLFLOW_TRACKING_URI": self.tracking_uri}
        return {
            **_for_restarts(self.config),
            **self.config.env,
            **uri,
            "MLFLOW_RUN_ID": self.run_id,
            "MLFLOW_EXPERIMENT_ID": self.experiment_id,
            # By default torchrun's workers share one thread each, and say so in a warning.
            "OMP_NUM_THREADS": self.config.env.get("OMP_NUM_THREADS", str(_threads(self.config))),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.config.grace_s),
        }


class Launcher(msgspec.Struct, frozen=True, kw_only=True):
    """The process that makes a launch's folder, and then starts it.

    Attributes:
        host: Its machine's name.
        pid: Its number there.
        started_s: When it began, in seconds since that machine did.
    """

    host: str
    pid: int
    started_s: float

    @property
    def runs_here(self) -> bool:
        """Whether it still runs on this machine, and its number is no other's."""
        try:
            return process_started_s(self.pid) == self.started_s
        except ProcessLookupError:
            return False


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler calls a launch.

    Attributes:
        jobs: The jobs that train, in the order in which they follow each other; here the host and
            process of the supervisor, "host:pid".
        closing: Slurm's job that tells MLflow how it ended; "" for none.
    """

    jobs: list[str]
    closing: str = ""


def _for_restarts(config: LaunchConfig) -> dict[str, str]:
    """Started anew, `init_process_group` would find what the dead left in torchrun's own store."""
    return {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if config.restarts else {}


def _threads(config: LaunchConfig) -> int:
    return max(1, (config.cpus or 0) // config.processes_per_node)


class Workplace:
    """A launch's folder, private to the user; every file in it is written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, plan: Plan) -> None:
        """Make the folder, and write down what is to be run.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, mode=0o700)
            for name in ("outcomes", "attempts"):
                (self.path / name).mkdir(mode=0o700)
            pid = os.getpid()
            started_s = process_started_s(pid)
            self.note_launcher(Launcher(host=gethostname(), pid=pid, started_s=started_s))
            self.write_plan(plan)
            write_slot(self.path / _RESERVED, b"".ljust(_RESERVED_BYTES))
        except OSError as error:
            raise ConfigError(f"the launch's folder {self.path}: {error.strerror}") from None

    def note_launcher(self, launcher: Launcher) -> None:
        """Write down who starts it."""
        write_whole(self.path / "launcher.json", msgspec.json.encode(launcher))

    def note_started(self) -> None:
        """Have nobody be about to start it any more; that needs no room on a disk."""
        with contextlib.suppress(OSError):
            (self.path / "launcher.json").unlink()

    def launcher(self) -> Launcher | None:
        """Who starts it, or has; None where that cannot be read, or `note_started` was called."""
        return self._read("launcher.json", Launcher)

    def write_plan(self, plan: Plan) -> None:
        """Write down what is to be run."""
        write_whole(self.path / "plan.json", msgspec.json.format(msgspec.json.encode(plan)))

    def plan(self) -> Plan:
        """What is to be run.

        Raises:
            ConfigError: this is no launch's folder, or its plan is damaged.
        """
        if (plan := self._read("plan.json", Plan)) is None:
            raise ConfigError(f"{self.path} holds no launch that can be read")
        return plan

    def outcome_file(self, attempt: int | str) -> str:
        """Where the agents of an attempt write; each puts its node's number for `{node}`."""
        return str(self.path / "outcomes" / f"{attempt}-{{node}}.json")

    def outcomes(self, attempt: int) -> list[AgentOutcome]:
        """What the agents of an attempt left behind, as far as they could."""
        names = sorted((self.path / "outcomes").glob(f"{attempt}-*.json"))
        found = (self._read(f"outcomes/{path.name}", AgentOutcome) for path in names)
        return [one for one in found if one is not None]

    def begin_attempt(self, job: str) -> int:
        """Note that a job begins; how many have begun before it."""
        for attempt in range(1_000_000):
            path = self.path / "attempts" / str(attempt)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            with open(descriptor, "w") as file:
                file.write(job)
            return attempt
        raise ConfigError(f"{self.path}: a million attempts")

    def attempts(self) -> list[str]:
        """The jobs that have begun, each time they did."""
        paths = sorted((self.path / "attempts").iterdir(), key=lambda path: int(path.name))
        return [path.read_text() for path in paths]

    def note_stop(self, attempt: int, why: str) -> None:
        """Write down that an attempt was ended from outside, where the disk lets."""
        path = self.path / "outcomes" / f"{attempt}.stopped"
        if not _note(path, why.encode()):
            # An empty file needs no room.
            with contextlib.suppress(OSError):
                path.touch(mode=0o600)

    def stop_of(self, attempt: int) -> str:
        """Why an attempt was ended from outside; "" where it was not, or could not say."""
        try:
            said = (self.path / "outcomes" / f"{attempt}.stopped").read_text()
        except OSError:
            return ""
        return said or "its job was told to end, and not by a rank"

    def end(self, ending: Ending) -> None:
        """Write down how the launch ended, where the disk lets: a full one has room kept for it."""
        content = msgspec.json.encode(ending)
        if not _note(self.path / "ended.json", content):
            with contextlib.suppress(OSError):
                write_slot(self.path / _RESERVED, content)

    def ending(self) -> Ending | None:
        """How the launch ended; None where nobody has said, or could write it down."""
        said = self._read("ended.json", Ending)
        return said if said is not None else self._read(_RESERVED, Ending, read_slot)

    def note_told(self) -> None:
        """Write down that MLflow knows how the launch ended; where not, it may be told again."""
        _note(self.path / "told", b"")

    def is_told(self) -> bool:
        """Whether MLflow knows how the launch ended."""
        return (self.path / "told").exists()

    def write_submitted(self, submitted: Submitted) -> None:
        """Write down what the scheduler calls it."""
        write_whole(self.path / "submitted.json", msgspec.json.encode(submitted))

    def submitted(self) -> Submitted | None:
        """What the scheduler calls it; None where it was not submitted."""
        return self._read("submitted.json", Submitted)

    def is_submitted(self) -> bool:
        """Whether it was submitted, also where what was written of that cannot be read."""
        return (self.path / "submitted.json").exists()

    def write_script(self, name: str, text: str) -> Path:
        """Write a script or manifest for whoever wants to read it."""
        write_whole(self.path / name, text.encode())
        return self.path / name

    def open_log(self) -> BinaryIO:
        """The file for what ranks on this machine print when nobody waits for them."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return open(os.open(self.path / "local.log", flags, 0o600), "ab")

    def _read(
        self, name: str, kind: type[S], content: Callable[[Path], bytes | None] = Path.read_bytes
    ) -> S | None:
        try:
            return msgspec.json.decode(content(self.path / name) or b"", type=kind)
        except (OSError, UnicodeDecodeError, msgspec.DecodeError):
            return None


def _note(path: Path, content: bytes) -> bool:
    """Write a file that nothing hangs on; whether the disk let it."""
    try:
        write_whole(path, content)
    except OSError:
        return False
    return True


def folder_for(config: LaunchConfig, cwd: str, run_id: str) -> Path:
    """Where the launch of a run lies."""
    return Path(cwd, config.folder or LAUNCHES, run_id)


def python_of(config: LaunchConfig, here: str) -> Sequence[str]:
    """The interpreter that runs our modules, which nothing in the project's folder hides."""
    return [config.python or ("python" if config.kind == "kubernetes" else here), "-P", "-m"]
