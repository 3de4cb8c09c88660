"""What is done about a fault of a backend: it is caught here and nowhere else, and tried again."""

import base64
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.object_storage import advice_on, code_of
from opusclip_mlops.records import Checkpoint, Record

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
MAX_BYTES = 1024 * 1024
"""How much may be put off; behind that the journal keeps what comes, and is read no further."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class AwaitsOthers(DeliveryError):
    """What waits for other machines to send their part; what is behind it does not."""


def attempted(action: Callable[[], object]) -> Exception | None:
    """Do something with a backend, which may fail in any way: the fault, or None if it is done."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the one place where a backend may fail in any way
        return error
    return None


class PutOff:
    """Records that could not be sent when their turn came, so that they hold up no other.

    They are tried again in their order, one at a time, after waits that grow to a minute. What
    `AwaitsOthers` is looked at as often, and holds up nothing.

    Args:
        encoded: What `encoded` gave, when this goes on after a restart.
        slim: Makes a record that is put off small, such as by a file that holds its content.

    Attributes:
        faults: How often one could not be sent.
    """

    def __init__(
        self, encoded: Sequence[str] = (), *, slim: Callable[[Record], Record] = lambda one: one
    ) -> None:
        self._slim = slim
        self._records = deque(_decode(base64.b64decode(one)) for one in encoded)
        self._encoded = deque(encoded)
        self._wait_s = FIRST_RETRY_S
        self._not_before_s = 0.0
        self._aside: list[tuple[Record, str]] = []
        self._look_wait_s, self._look_s = FIRST_RETRY_S, 0.0
        self.faults = 0
        self._fault = ""

    @property
    def is_empty(self) -> bool:
        """Whether everything was sent."""
        return not self._records and not self._aside

    @property
    def fault(self) -> str:
        """Why something waits, on one line without a secret; empty when nothing does."""
        if self.is_empty or not self._fault:
            return ""
        count = len(self._records) + len(self._aside)
        return f"{count} file{' waits' if count == 1 else 's wait'}: {self._fault}"

    def encoded(self) -> list[str]:
        """What is put off, as JSON can hold it."""
        return [one for _, one in self._aside] + list(self._encoded)

    def send_or_keep(self, record: Record, send: Callable[[Record], None]) -> None:
        """Send a record, or put it off.

        A checkpoint never overtakes one before it, but for one that waits for other machines.
        """
        overtakes = isinstance(record, Checkpoint) and any(
            isinstance(one, Checkpoint) for one in self._records
        )
        is_early = bool(self._records) and time.monotonic() < self._not_before_s
        if overtakes or is_early:
            self._keep(record)
        elif fault := attempted(lambda: send(record)):
            self._tell(record, fault)
            self._keep(record)
            if isinstance(fault, AwaitsOthers):
                self._put_aside(len(self._records) - 1)
            else:
                self._not_before_s = time.monotonic() + self._wait_s

    def try_again(self, send: Callable[[Record], None]) -> None:
        """Send what was put off, as long as it can be sent and the wait is over."""
        self._take_back()
        while self._records and time.monotonic() >= self._not_before_s:
            record = self._records[0]
            if fault := attempted(functools.partial(send, record)):
                self._tell(record, fault)
                if isinstance(fault, AwaitsOthers):
                    self._put_aside(0)
                    continue
                self._wait_s = min(2 * self._wait_s, LAST_RETRY_S)
                self._not_before_s = time.monotonic() + self._wait_s
                # The others have their turn: one bad file must not hold them up either.
                self._turn()
                return
            self._records.popleft()
            self._encoded.popleft()
            self._wait_s = FIRST_RETRY_S

    def _put_aside(self, place: int) -> None:
        """Have a record wait where it is in nobody's way, until all of these are looked at."""
        if not self._aside:
            self._look_s = time.monotonic() + self._look_wait_s
            self._look_wait_s = min(2 * self._look_wait_s, LAST_RETRY_S)
        self._aside.append((self._records[place], self._encoded[place]))
        del self._records[place], self._encoded[place]

    def _take_back(self) -> None:
        """Give those that were put aside their turn, in their order, once it is time."""
        if not self._aside:
            self._look_wait_s = FIRST_RETRY_S
        elif time.monotonic() >= max(self._look_s, self._not_before_s):
            self._records.extendleft(record for record, _ in reversed(self._aside))
            self._encoded.extendleft(encoded for _, encoded in reversed(self._aside))
            self._aside.clear()

    def _keep(self, record: Record) -> None:
        record = self._slim(record)
        encoded = base64.b64encode(_encode(record)).decode()
        known = self.encoded()
        if known and sum(map(len, known)) + len(encoded) > MAX_BYTES:
            raise DeliveryError(f"{len(known)} files wait for MLflow's artifact store")
        self._records.append(record)
        self._encoded.append(encoded)

    def _turn(self) -> None:
        """Let another have its turn; checkpoints stay in their order."""
        is_other = (not isinstance(one, Checkpoint) for one in self._records)
        place = next((at for at, found in enumerate(is_other) if found), None)
        if place == 0:
            self._records.rotate(-1)
            self._encoded.rotate(-1)
        elif place is not None:
            for queue in (self._records, self._encoded):
                other = queue[place]
                del queue[place]
                queue.appendleft(other)

    def _tell(self, record: Record, fault: Exception) -> None:
        self.faults += 1
        self._fault = advice_on(fault) or _called(fault)
        kind = type(record).__name__
        print(f"{kind} put off: {_called(fault)}", flush=True)


def _called(fault: Exception) -> str:
    """The kind of a fault, with S3's code for it; its text may hold what is secret."""
    if isinstance(fault, AwaitsOthers):
        return "for what other machines have not sent"
    for one in (fault, fault.__cause__ or fault.__context__):
        if code := code_of(one):
            return f"{type(fault).__name__} ({code})"
    return type(fault).__name__
