"""What a machine hears of the one that owns its run, and what it does where that is gone for good.

Once it has told all that its ranks logged, and how they ended, it stays until the owner's machine
has shown life after that: the run's end is then that one's to declare. Where it shows none for long
the run is ended from here, for it would stay RUNNING for ever. The owner's machine puts that right
if it comes back.
"""

import time

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.layout import RANKS, REASON_TAG
from opusclip_mlops.life_signs import INTERVAL_S, OWNER, Listening
from opusclip_mlops.sessions import sessions
from opusclip_mlops.vain_waiting import WAIT_S

TOLD = "told_all"
"""In the relay's state: all is told that was logged here, only the owner's machine is awaited."""
SILENCE = "owner_is_silent"
"""In the relay's state: what a user is to know where the owner's machine shows no life."""

_FIRST_LOOK_S = 1.0


class OwnerWatch:
    """Listens to the owner's machine, and ends its run where it is gone.

    Args:
        folder: The run's on this machine.
        repository: Where its artifacts lie.
        silent_after_s: After this time without a sign the owner's machine counts as silent.
    """

    def __init__(
        self, folder: RunFolder, repository: ArtifactRepository, *, silent_after_s: float
    ) -> None:
        self._folder, self._repository = folder, repository
        self._silent_after_s = silent_after_s
        self._listening = Listening(folder.path, OWNER)
        self._listening.look(repository, every_s=0.0)
        self._told_s: float | None = None
        self._told_at = (0, self._listening.last)
        self._has_left = False

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
        if not has_told:
            self._told_s, self._has_left = None, False
            self._listening.look(self._repository, every_s=self._silent_after_s / 3)
            return True
        if self._told_s is None:
            self._told_s = time.monotonic()
            self._told_at = (self._listening.news, self._listening.last)
        waited_s = time.monotonic() - self._told_s
        every_s = min(max(_FIRST_LOOK_S, waited_s / 4), INTERVAL_S)
        if not self._has_left and self._listening.look(self._repository, every_s=every_s):
            self._has_left = self._has_answered()
        if not self._has_left and self._silent_s(self._told_s) >= WAIT_S:
            self._end_run()
            self._has_left = True
        return not self._has_left

    def _has_answered(self) -> bool:
        """Whether the owner's machine lived after all was told.

        One sign may have been given before and seen after.
        """
        news, last = self._listening.news, self._listening.last
        is_over = last is not None and last.is_over and last != self._told_at[1]
        return is_over or news >= self._told_at[0] + 2

    def _silent_s(self, since_s: float) -> float:
        return time.monotonic() - max(since_s, self._listening.heard_s)

    def _owner(self) -> str:
        last = self._listening.last
        return f"{last.host}, which owns the run" if last else "the machine that owns the run"

    def _end_run(self) -> None:
        """Declare the end that the owner's machine did not, unless there is one."""
        identity, every = self._folder.identity(), sessions(self._folder)
        assert identity is not None
        client = MlflowClient(self._folder.manifest().tracking_uri)
        is_going_on = client.get_run(identity.run_id).info.status == "RUNNING"
        reason = f"nothing was heard of {self._owner()}, for {WAIT_S:g} s"
        if is_going_on and any(one.start.owned for one in every):
            client.set_tag(identity.run_id, REASON_TAG, reason)
            end_ms = max(one.end.end_time_ms for one in every if one.end)
            client.set_terminated(identity.run_id, "FAILED", end_ms)
        what = "the run is FAILED now" if is_going_on else "the run had ended"
        lie = f"what was logged here lies in the files of run {identity.run_id} under {RANKS}"
        print(f"{reason}: {what}; {lie}", flush=True)
