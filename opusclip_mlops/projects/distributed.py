"""Training by many processes: how they meet, what each has of a batch, what all must agree on.

What only one of them does (it validates, draws samples, registers) is done by the owner of the run,
and the others wait for it. A process that no launcher has numbered is alone, and waits for nobody.
"""

import datetime
import os
import re
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from opusclip_mlops.errors import CheckpointError, ConfigError, OpusclipError
from opusclip_mlops.noticeboard import common_word
from opusclip_mlops.projects.shares import WHOLE, Share
from opusclip_mlops.ranks import Place
from opusclip_mlops.tracker import ExperimentTracker

WAIT = datetime.timedelta(hours=2)
"""How long a rank waits for the others: the owner may validate and draw samples meanwhile."""

ARRIVAL_WAIT_S = 600.0
"""How long is waited at most until MLflow has what others need of it."""

_MEETING = datetime.timedelta(minutes=10)
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_LOST = re.compile(r"(?i)connection (?:reset|closed|refused|aborted)[\w ]*|timed out|broken pipe")

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Ranks:
    """The processes that train one model together, this one among them; they meet when it is made.

    Args:
        place: Where this process stands among them; None for one that is alone.
        owner: The rank that makes the run, and does what only one has to do; 0 where there are
            not so many.

    Raises:
        ConfigError: they cannot meet.
    """

    def __init__(self, place: Place | None = None, *, owner: int = 0) -> None:
        self._place, self.share = place, WHOLE
        self.is_told_to_end = False
        """Whether it was told by SIGTERM that it is to end, while that is waited for."""
        self._handler: _Handler = None
        if place is not None and place.world_size > 1:
            self.share = Share(place.rank, place.world_size)
            _meet(place)
        self._owner = owner if owner < self.share.of else 0

    @property
    def are_many(self) -> bool:
        """Whether there are others."""
        return self.share.of > 1

    @property
    def are_launched(self) -> bool:
        """Whether a launcher has started this process, and may start it anew."""
        return self._place is not None

    @property
    def are_on_many_nodes(self) -> bool:
        """Whether they do not all see the same disk."""
        return self._place is not None and self._place.nodes > 1

    @property
    def is_owner(self) -> bool:
        """Whether this process does what only one has to do."""
        return not self.are_many or self.share.number == self._owner

    def device(self, asked: torch.device) -> torch.device:
        """The device of this rank: of many GPUs the one with its number on this machine.

        Raises:
            ConfigError: there is none for it, or the device is no one's to share.
        """
        if not self.are_many or asked.type == "cpu":
            return asked
        assert self._place is not None
        if asked.type != "cuda" or asked.index is not None:
            raise ConfigError(f"device is '{asked}': {self.share.of} ranks need 'cpu' or 'cuda'")
        if self._place.local_rank >= (count := torch.cuda.device_count()):
            what = f"rank {self.share.number} is number {self._place.local_rank} on this machine"
            raise ConfigError(f"device is 'cuda': {what}, which has {count} GPUs: start fewer")
        torch.cuda.set_device(self._place.local_rank)
        return torch.device("cuda", self._place.local_rank)

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that cannot be shared out equally: its loss would not be the mean.

        Raises:
            ConfigError: it cannot.
        """
        if batch_size % self.share.of:
            raise ConfigError(
                f"batch_size is {batch_size}: {self.share.of} ranks cannot share it out equally; "
                f"give a multiple of {self.share.of}"
            )

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model so that its gradients become the mean of all ranks'."""
        return DistributedDataParallel(model) if self.are_many else model

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is raised by any rank; every rank has to ask."""
        if not self.are_many:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return tuple(bool(one) for one in raised.tolist())

    def mean(self, value: float) -> float:
        """The mean of all ranks' values; every rank has to ask."""
        if not self.are_many:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item() / self.share.of

    def told_by_owner(self, text: str) -> str:
        """The owner's text, whatever the others give; they wait for it."""
        return self._of_owner(text.encode()).decode()

    def follow_owner(self) -> None:
        """Wait for the owner, and go on with the state of its random generators.

        What it alone did may have drawn from them.
        """
        if self.are_many:
            state = self._of_owner(torch.get_rng_state().numpy().tobytes())
            torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        if self.are_many and torch.cuda.is_available():
            state = self._of_owner(torch.cuda.get_rng_state().numpy().tobytes())
            torch.cuda.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

    def _of_owner(self, content: bytes) -> bytes:
        if not self.are_many:
            return content
        size_bytes = torch.tensor(len(content))
        distributed.broadcast(size_bytes, self._owner)
        told = torch.tensor(list(content), dtype=torch.uint8)
        if not self.is_owner:
            told = torch.empty(int(size_bytes), dtype=torch.uint8)
        distributed.broadcast(told, self._owner)
        return told.numpy().tobytes()

    def __enter__(self) -> Self:
        if self._place is not None and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Who launched this process gives it time to end by itself: a step is done first."""
        self.is_told_to_end = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Part from the others: those that wait for this one learn at once that it is gone.

        Raises:
            OpusclipError: another one is gone.
        """
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        if not self.are_many:
            return
        distributed.destroy_process_group()
        if isinstance(error, RuntimeError) and (lost := _LOST.search(str(error))):
            said = f"rank {self.share.number} lost another one: {lost[0].strip()}"
            raise OpusclipError(said) from error


def bring_in(ranks: Ranks, tracker: ExperimentTracker) -> None:
    """Have what only the owner's machine has of the run in MLflow, for the ranks of others."""
    if ranks.are_on_many_nodes:
        if ranks.is_owner:
            tracker.flush(sink="mlflow", timeout_s=ARRIVAL_WAIT_S)
        ranks.follow_owner()


def _meet(place: Place) -> None:
    """Meet over what the launcher names: gloo for tensors of the CPU, NCCL for those of GPUs."""
    if absent := [name for name in _ADDRESS if not os.environ.get(name)]:
        raise ConfigError(
            f"{' and '.join(absent)} is not set: {place.world_size} ranks cannot meet; start them "
            "by torchrun, or say where rank 0 is"
        )
    rank, size = place.rank, place.world_size
    try:
        store, *_ = next(rendezvous("env://", rank, size, timeout=_MEETING))
        # torchrun keeps one store for all its attempts, with what the dead have left in it, and
        # machines count their attempts apart: PyTorch's own keys by them lead past each other.
        store = store.underlying_store if isinstance(store, PrefixStore) else store
        word = common_word(store, rank=rank, world_size=size, wait_s=_MEETING.total_seconds())
        own = PrefixStore(f"opusclip/{word}", store)
        distributed.init_process_group(store=own, rank=rank, world_size=size, timeout=WAIT)
    except (CheckpointError, ValueError, RuntimeError) as error:
        where = ":".join(os.environ[name] for name in _ADDRESS)
        why = str(error).split("\n")[0]
        raise ConfigError(f"no other rank was met at {where}: {why}") from error
