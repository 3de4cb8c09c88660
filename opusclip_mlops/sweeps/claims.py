"""Who runs which trial: each is begun by one worker, and what a lost worker had is tried again.

A trial is claimed by one write that the study's storage lets one worker do. Who died on this
machine is known by its process; on another one, by a count that it has not raised for two minutes.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sweeps import board
from opusclip_mlops.sweeps.board import STOPPED, Board, Slot
from opusclip_mlops.sweeps.schema import SweepConfig
from opusclip_mlops.sweeps.spaces import Grid, distribution_of, value_of
from opusclip_mlops.sweeps.stopping_early import Progress, is_behind

COUNT = "count"
"""The study's user attribute that says how many trials are asked for."""

STALE_S = 120.0
"""After so many seconds without a word a worker on another machine is given up."""

MOST_BAD_STARTS = 5
"""After so many trials, of which all have failed, a sweep ends."""

_UNSIGNED_S = 15.0
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs.

    Attributes:
        number: The trial's, from 0 on.
        attempt: How often it was tried, this time included.
        trial_id: Its name in the storage.
        values: By the names of parameters.
    """

    number: int
    attempt: int
    trial_id: int
    values: dict[str, Any]


def this_process() -> dict[str, Any]:
    """Names this process so that another one on its machine knows whether it lives."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started_s": process_started_s(pid)}


def _host() -> str:
    # Machines may share a name; containers of one share that too, and number their processes each.
    with contextlib.suppress(OSError):
        boot = _BOOT_FILE.read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def is_process_gone(named: dict[str, Any], *, is_alone: bool = False) -> bool | None:
    """Whether a process of this machine has died; None for one of another machine.

    Args:
        named: What `this_process` was there.
        is_alone: Whether who has this machine's name was it, before it was begun anew.
    """
    if (host := str(named.get("host"))) != _host():
        is_namesake = host.partition(" ")[0] == socket.gethostname()
        return True if is_alone and is_namesake else None
    try:
        return process_started_s(int(named["pid"])) != float(named["started_s"])
    except ProcessLookupError:
        return True


class Claims:
    """One worker's view of a study.

    Args:
        storage: Where the study is shared.
        name: The study's.
        config: The sweep's.
        on_lost: Called with the trial of a worker that was lost, before it is tried again.
        is_alone: Whether the study is a file of this machine that no command works at any more.
        is_stopped: Whether workers that are gone were stopped by force: then none was lost.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        config: SweepConfig,
        *,
        on_lost: Callable[[Slot], object] = lambda _: None,
        is_alone: bool = False,
        is_stopped: bool = False,
    ) -> None:
        self._config, self._on_lost, self._is_stopped = config, on_lost, is_stopped
        self._is_process_gone = partial(is_process_gone, is_alone=is_alone)
        self._storage = storage
        self._name, self._sampler = name, _sampler(config.method)
        self._study = self._loaded()
        self._study_id = storage.get_study_id_from_name(name)
        self._grid = Grid(config.parameters) if config.method == "grid" else None
        self._me = {**this_process(), "view": secrets.token_hex(4)}
        self._mine: set[int] = set()
        self._beat = 0
        self._seen: dict[int, tuple[Any, float]] = {}

    def board(self) -> Board:
        """How the trials stand."""
        return Board.of(self._trials())

    def count(self) -> int:
        """How many trials are asked for."""
        return int(self._study.user_attrs[COUNT])

    def is_over(self) -> bool:
        """Whether nothing is left to do: all trials have ended, or one reached the target."""
        found, count = self.board(), self.count()
        return found.is_over(count) or self._is_target_reached(found) or self.is_hopeless(found)

    def is_hopeless(self, found: Board) -> bool:
        """Whether the first trials have all failed, so that more would be in vain."""
        bad = 0
        for slot in found.slots:
            if slot.is_over:
                if slot.state != "failed":
                    return False
                bad += 1
        return bad >= MOST_BAD_STARTS

    def is_worked_at(self) -> bool:
        """Whether somebody runs a trial, here or elsewhere, and is not known to be dead."""
        running = self.board().running(self.count())
        signs = (one.last.user_attrs.get(board.WORKER) for one in running)
        return any(sign and not self._is_process_gone(sign) for sign in signs)

    def next(self) -> Claim | None:
        """Claim a trial; None where there is none to be had now."""
        found, count = self.board(), self.count()
        if self.reclaim(found, count):
            found = self.board()
        if self._is_target_reached(found) or self.is_hopeless(found):
            return None
        for slot in found.asked_for(count):
            if slot.last.state == TrialState.WAITING and self._take(slot.last):
                return self._claimed(slot.number, slot.last)
        return self._begin(count) if len(found.slots) < count else None

    def reclaim(self, found: Board, count: int) -> bool:
        """Have tried again what lost workers had; whether there was anything to do."""
        stale = list(found.superseded())
        for trial in stale:
            self._end_lost(trial, "it was given to another worker")
        has_news = bool(stale)
        for slot in found.asked_for(count):
            if slot.is_surplus:
                self._try_again(slot.last)
                has_news = True
            elif slot.last.state == TrialState.RUNNING and self._is_gone(slot.last):
                self._on_lost(slot)
                self.lose(slot)
                has_news = True
        return has_news

    def lose(self, slot: Slot) -> None:
        """Give up an attempt that died, and have it made again unless that has been in vain."""
        loss = 0 if self._is_stopped else 1
        if board.losses_of(slot.last) + loss < board.MOST_LOSSES:
            self._try_again(slot.last, losses=loss)
        self._end_lost(slot.last, STOPPED if self._is_stopped else "its worker was lost")

    def _end_lost(self, trial: FrozenTrial, why: str) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(trial._trial_id, board.REASON, why)
        self._fail(trial._trial_id)

    def give_up(self, claim: Claim, why: str = STOPPED) -> bool:
        """Leave a trial of one's own to others, because this worker ends.

        False where it is over: that may have been told without an answer.
        """
        for slot in self.board().slots:
            if slot.last._trial_id == claim.trial_id:
                if slot.last.state.is_finished():
                    return False
                self._try_again(slot.last)
                self._end_lost(slot.last, why)
        return True

    def is_still_mine(self, claim: Claim) -> bool:
        """Whether nobody else has given this worker up meanwhile; it is told to be alive."""
        self._beat += 1
        try:
            self._storage.set_trial_user_attr(claim.trial_id, board.BEAT, self._beat)
        except UpdateFinishedTrialError:
            return False
        return any(
            slot.last._trial_id == claim.trial_id and slot.last.state == TrialState.RUNNING
            for slot in self.board().slots
        )

    def note(self, claim: Claim, name: str, value: Any) -> None:
        """Keep something about a trial, for whoever tries it again or reads the result."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(claim.trial_id, name, value)

    def report(self, claim: Claim, band: int, value: float) -> None:
        """Share a trial's value at a band."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_intermediate_value(claim.trial_id, band, value)

    def is_behind(self, progress: Progress) -> bool:
        """Whether a trial has fallen behind the others at its band."""
        hyperband, metric = self._config.hyperband, self._config.metric
        if hyperband is None or metric is None or progress.band is None:
            return False
        at_band = [
            one.last.intermediate_values[progress.band]
            for one in self.board().slots
            if progress.band in one.last.intermediate_values
        ]
        return is_behind(progress, at_band, hyperband, maximizes=metric.maximizes)

    def end(
        self, claim: Claim, state: TrialState, value: float | None, reason: str, run_id: str = ""
    ) -> bool:
        """Say how a trial ended, and in which run; False where another worker tries it by now."""
        # Which run it is was said when that was made, but the storage may have been away.
        for name, said in ((board.RUN_ID, run_id), (board.REASON, reason)):
            if said:
                self.note(claim, name, said)
        values = None if value is None else [value]
        try:
            self._storage.set_trial_state_values(claim.trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _loaded(self) -> optuna.Study:
        return optuna.load_study(
            study_name=self._name, storage=self._storage, sampler=self._sampler
        )

    def _trials(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    def _is_target_reached(self, found: Board) -> bool:
        metric = self._config.metric
        if metric is None or metric.target is None:
            return False
        ends = (one.last for one in found.slots if one.state == "complete")
        return any(metric.is_reached_by(one.values[0]) for one in ends if one.values)

    def _begin(self, count: int) -> Claim | None:
        """Begin the next new trial; one that is not asked for any more is left at once."""
        mine = create_trial(state=TrialState.RUNNING, user_attrs={board.WORKER: self._me})
        trial_id = self._storage.create_new_trial(self._study_id, mine)
        number = self._number_of(trial_id)
        if number >= count:
            self._storage.set_trial_user_attr(trial_id, board.SURPLUS, True)
            self._fail(trial_id)
            return None
        return self._claimed(number, self._storage.get_trial(trial_id))

    def _number_of(self, trial_id: int) -> int:
        """The number of a first attempt: as many others of them were begun before it."""
        firsts = (one for one in self._trials() if board.RETRY_OF not in one.user_attrs)
        return next(number for number, one in enumerate(firsts) if one._trial_id == trial_id)

    def _claimed(self, number: int, trial: FrozenTrial) -> Claim:
        values = self._values(number, trial._trial_id)
        self._mine.add(trial._trial_id)
        return Claim(number, board.attempt_of(trial), trial._trial_id, values)

    def _values(self, number: int, trial_id: int) -> dict[str, Any]:
        if self._grid:
            return self._grid.point(number)
        # A study once loaded keeps what it has read of the other trials.
        trial = Trial(self._loaded(), trial_id)
        drawn = {}
        for one in self._config.parameters:
            distribution = distribution_of(one)
            drawn[one.name] = distribution and _drawn(trial, one.name, distribution)
        return {one.name: value_of(one, drawn[one.name]) for one in self._config.parameters}

    def _take(self, trial: FrozenTrial) -> bool:
        try:
            is_mine = self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if is_mine:
            self._storage.set_trial_user_attr(trial._trial_id, board.WORKER, self._me)
        return is_mine

    def _try_again(self, trial: FrozenTrial, *, losses: int = 0) -> None:
        attrs = board.retry_attrs(trial, losses=losses)
        self._study.enqueue_trial(trial.params, user_attrs=attrs)

    def _fail(self, trial_id: int) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _is_gone(self, trial: FrozenTrial) -> bool:
        """Whether who runs a trial is dead, or has not been heard of for long."""
        worker = trial.user_attrs.get(board.WORKER)
        if worker == self._me:
            # The storage went away between its beginning and the claim's end.
            return trial._trial_id not in self._mine
        if worker and (is_gone := self._is_process_gone(worker)) is not None:
            return is_gone
        sign, now_s = (worker, trial.user_attrs.get(board.BEAT)), time.monotonic()
        seen, since_s = self._seen.get(trial._trial_id, (None, now_s))
        if seen != sign:
            since_s = now_s
        self._seen[trial._trial_id] = (sign, since_s)
        return now_s - since_s > (STALE_S if worker else _UNSIGNED_S)


def _sampler(method: str) -> BaseSampler:
    return TPESampler(constant_liar=True) if method == "bayes" else RandomSampler()


def _drawn(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
        case IntDistribution():
            return trial.suggest_int(name, distribution.low, distribution.high)
        case optuna.distributions.FloatDistribution():
            low, high = distribution.low, distribution.high
            return trial.suggest_float(name, low, high, log=distribution.log)
    raise AssertionError(distribution)
