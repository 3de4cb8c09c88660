"""A database file that is new becomes MLflow's store once, however many processes find it so."""

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def alone_in_store(uri: str) -> Iterator[None]:
    """Keep others of ours out of a database file meanwhile; other places need no such care.

    Two clients that both find it new both make its tables, and break it for good.
    """
    folder = os.path.dirname(uri.partition(":///")[2]) or "."
    if not uri.startswith("sqlite:") or not os.path.isdir(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # A process that another thread has forked meanwhile would hold it on.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
