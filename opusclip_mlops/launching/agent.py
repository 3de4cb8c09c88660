"""Starts the ranks of one node by torchrun, and leaves behind which of them failed and how.

torchrun's own exit code is 1 whatever a rank's was; this process has the rank's.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError

from opusclip_mlops.launching.outcomes import AgentOutcome, shell_code
from opusclip_mlops.redaction import one_line

_NODE_NUMBERS = ("SLURM_NODEID", "JOB_COMPLETION_INDEX")
_LOST = 1
_MEETING = "--rdzv-conf="


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments, the file for the outcome first; the rank's exit code."""
    place, *rest = arguments
    outcome = _run(_with_host(rest))
    # The exit code is true also where the disk is full.
    with contextlib.suppress(OSError):
        Path(place.replace("{node}", str(node_number()))).write_bytes(msgspec.json.encode(outcome))
    return shell_code(outcome.exit_code)


def node_number() -> int:
    """This node's number among those of the launch, as Slurm or Kubernetes says it; 0 here."""
    return next((int(os.environ[name]) for name in _NODE_NUMBERS if name in os.environ), 0)


def _with_host(arguments: list[str]) -> list[str]:
    """The first node holds the store where all meet, whatever its addresses look like."""
    if not any(name in os.environ for name in _NODE_NUMBERS):
        return arguments
    is_host = f"is_host={'true' if node_number() == 0 else 'false'}"
    if (given := next((one for one in arguments if one.startswith(_MEETING)), None)) is None:
        return [f"{_MEETING}{is_host}", *arguments]
    place = arguments.index(given)
    return [*arguments[:place], f"{given},{is_host}", *arguments[place + 1 :]]


def _run(arguments: list[str]) -> AgentOutcome:
    try:
        torchrun.run(torchrun.parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        return _failed(*error.get_first_failure())
    except SignalException as error:
        return _outcome(-int(error.sigval), stopped_by=error.sigval.name)
    except RendezvousError as error:
        return _outcome(
            _LOST, message=f"no other node was met at {_endpoint(arguments)}: {_why(error)}"
        )
    except (OSError, RuntimeError, ValueError) as error:
        return _outcome(_LOST, message=f"torchrun: {_why(error)}")
    return _outcome(0)


def _endpoint(arguments: list[str]) -> str:
    """Where the nodes were to meet."""
    given = (one.partition("=")[2] for one in arguments if one.startswith("--rdzv-endpoint="))
    return next(given, "")


def _why(error: Exception) -> str:
    """What lies behind an error, without the frames that PyTorch puts under it."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    return one_line(text.split("\n")[0])


def _failed(rank: int, failure: ProcessFailure) -> AgentOutcome:
    told = failure.message if failure.error_file_data else ""
    said = one_line(str(told.get("message", "")) if isinstance(told, dict) else str(told))
    return msgspec.structs.replace(
        _outcome(failure.exitcode, message=said if "errors.html" not in said else ""),
        rank=rank,
        timestamp_ms=failure.timestamp * 1000,
    )


def _outcome(exit_code: int, *, stopped_by: str = "", message: str = "") -> AgentOutcome:
    return AgentOutcome(
        node=node_number(),
        host=socket.gethostname(),
        timestamp_ms=int(time.time() * 1000),
        exit_code=exit_code,
        stopped_by=stopped_by,
        message=message,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
