"""What a machine hears of the one that owns its run, and what it does where that is gone for good.

Once it has told all that its ranks logged, and how they ended, it stays until the owner's machine
has shown life after that: the run's end is then that one's to declare. Where it shows none for long
the run is ended from here, for it would stay RUNNING for ever. The owner's machine puts that right
if it comes back. Silence counts only while the artifact store takes the signs of this machine.
"""

import errno
import time

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.layout import RANKS, REASON_TAG
from opusclip_mlops.life_signs import INTERVAL_S, OWNER, Listening, Pauses, Showing
from opusclip_mlops.refusals import is_for_good, is_shut_out
from opusclip_mlops.sessions import sessions
from opusclip_mlops.vain_waiting import WAIT_S

TOLD = "told_all"
"""In the relay's state: all is told that was logged here, only the owner's machine is awaited."""
SILENCE = "owner_is_silent"
"""In the relay's state: what a user is to know where the owner's machine shows no life."""
KNOWN = "owner_was"
"""In the relay's state: the mark of the owner's last sign that was seen before all was told."""

_FIRST_LOOK_S = 1.0
_PROOF_S = 3 * INTERVAL_S


class OwnerWatch:
    """Listens to the owner's machine, and ends its run where it is gone.

    Args:
        folder: The run's on this machine.
        repository: Where its artifacts lie.
        showing: The signs of this machine.
        silent_after_s: After this time without a sign the owner's machine counts as silent.
        known: What was `known` when this machine watched before; None for the first time.
    """

    def __init__(
        self,
        folder: RunFolder,
        repository: ArtifactRepository,
        showing: Showing,
        *,
        silent_after_s: float,
        known: str | None = None,
    ) -> None:
        self._folder, self._repository, self._showing = folder, repository, showing
        self._silent_after_s = silent_after_s
        self._listening = Listening(folder.path, OWNER)
        self._listening.look(repository, every_s=0.0)
        self.known = self._mark() if known is None else known
        """The mark of the owner's last sign before all was told; empty where there was none."""
        self._told_s: float | None = None
        self._told_news = 0
        self._prove_s = 0.0
        self._pauses = Pauses(_PROOF_S)
        self._is_refused = self._has_left = False

    @property
    def silence(self) -> str:
        """What is to be known where nothing is heard of the owner's machine; else empty."""
        last = self._listening.last
        if time.monotonic() - self._listening.heard_s < self._silent_after_s or self._has_left:
            return ""
        lie = f"what was logged here since stays in the run's files under {RANKS}"
        if last and last.is_over:
            return f"{self._owner()}, waits no longer for this one: {lie}"
        return f"nothing is heard of {self._owner()}: {lie}, and becomes points once it is back"

    def look(self, *, has_told: bool) -> bool:
        """Listen if it is time to; whether this machine is to stay.

        Args:
            has_told: Whether all is told that was logged here, and how the ranks ended.

        Raises:
            Any fault of MLflow.
        """
        if self._pauses.lost_s():
            # Nobody was listened to.
            self._listening.heard_s = time.monotonic()
        if not has_told:
            self._told_s, self._has_left = None, False
            self._listening.look(self._repository, every_s=self._silent_after_s / 3)
            self.known = self._mark()
            return True
        if self._told_s is None:
            self._told_s, self._told_news = time.monotonic(), self._listening.news
        if not self._has_left:
            self._has_left = self._is_answered(self._told_s) or self._is_ended(self._told_s)
        return not self._has_left

    def _is_answered(self, told_s: float) -> bool:
        """Whether the owner's machine lived after all was told, or has left since.

        One sign may have been given before and seen after. A leave that was known before all was
        told is that of an earlier attempt, or of who did not wait: it answers nothing.
        """
        every_s = min(max(_FIRST_LOOK_S, (time.monotonic() - told_s) / 4), INTERVAL_S)
        self._listening.look(self._repository, every_s=every_s)
        last = self._listening.last
        is_over = last is not None and last.is_over and last.mark != self.known
        return is_over or self._listening.news >= self._told_news + 2

    def _mark(self) -> str:
        return self._listening.last.mark if self._listening.last else ""

    def _silent_s(self, since_s: float) -> float:
        return time.monotonic() - max(since_s, self._listening.heard_s)

    def _is_ended(self, told_s: float) -> bool:
        """Whether the owner's machine was silent for so long that its run has an end from here."""
        silent_s, now_s = self._silent_s(told_s), time.monotonic()
        if silent_s >= WAIT_S - _PROOF_S and now_s >= self._prove_s:
            self._prove_s = now_s + INTERVAL_S
            self._prove()
        if silent_s >= WAIT_S:
            self._end_run()
        return silent_s >= WAIT_S

    def _prove(self) -> None:
        """Have the store take a sign: where it takes none, nobody's silence tells anything.

        Raises:
            Any fault of MLflow: then all is counted anew.
        """
        if self._status() != "RUNNING":
            return
        fault = attempted(lambda: self._showing.give(self._repository))
        self._is_refused = fault is not None and _is_refusal(fault)
        if fault and not self._is_refused:
            raise fault

    def _status(self) -> str:
        """The run's status in MLflow, empty where it is not there any more."""
        identity = self._folder.identity()
        assert identity is not None
        client = MlflowClient(self._folder.manifest().tracking_uri)
        try:
            run = client.get_run(identity.run_id)
        except MlflowException as error:
            if not is_for_good(error):
                raise
            return ""
        is_there = run.info.lifecycle_stage == LifecycleStage.ACTIVE
        return str(run.info.status) if is_there else ""

    def _owner(self) -> str:
        last = self._listening.last
        return f"{last.host}, which owns the run" if last else "the machine that owns the run"

    def _end_run(self) -> None:
        """Declare the end that the owner's machine did not, unless there is one."""
        identity, every, status = self._folder.identity(), sessions(self._folder), self._status()
        assert identity is not None
        reason = f"nothing was heard of {self._owner()}, for {WAIT_S:g} s"
        if self._may_end(status):
            client = MlflowClient(self._folder.manifest().tracking_uri)
            client.set_tag(identity.run_id, REASON_TAG, reason)
            end_ms = max(one.end.end_time_ms for one in every if one.end)
            client.set_terminated(identity.run_id, "FAILED", end_ms)
        lie = f"what was logged here lies in the files of run {identity.run_id} under {RANKS}"
        print(f"{reason}: {self._came_of(status)}; {lie}", flush=True)

    def _may_end(self, status: str) -> bool:
        """Whether the run has no end yet, and one from here would be true."""
        is_owned = any(one.start.owned for one in sessions(self._folder))
        return status == "RUNNING" and is_owned and not self._is_refused

    def _came_of(self, status: str) -> str:
        if not status:
            return "the run is not in MLflow any more"
        if status != "RUNNING":
            return "the run had ended"
        if self._is_refused:
            return "the run is left as it is, for the artifact store takes no signs of life"
        ends = self._may_end(status)
        return "the run is FAILED now" if ends else "the run is left to the program that made it"


def _is_refusal(fault: Exception) -> bool:
    """Whether the store takes nothing from this machine, however often it is asked."""
    # The S3 client's own fault of an upload hides what the store answered.
    causes = [one for one in (fault, fault.__context__) if isinstance(one, Exception)]
    is_read_only = any(getattr(one, "errno", None) == errno.EROFS for one in causes)
    return is_read_only or any(is_for_good(one) or is_shut_out(one) for one in causes)
