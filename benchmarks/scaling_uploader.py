"""A worker that uploads files one after the other: to S3 itself, or through MLflow's server.

    python scaling_uploader.py

Asked for a while, it tells how many bytes arrived and how much of the processor it took itself.
"""

import http.client
import itertools
import os
import time
from typing import Any
from urllib.parse import urlsplit

from benchmarks.workers import Answers, requests

BUCKET = "films"
MEGABYTES = 16
_SERIAL = itertools.count()


def _through(url: str, content: bytes) -> None:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    name = f"{os.getpid()}-{next(_SERIAL)}.bin"
    connection.request("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{name}", content)
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    if answer.status != http.client.OK:
        raise OSError(told[:200].decode(errors="replace"))


def _direct(client: Any, content: bytes) -> None:
    client.put_object(Bucket=BUCKET, Key=f"direct/{os.getpid()}-{next(_SERIAL)}.bin", Body=content)


def main() -> None:
    """Answer requests until there are none."""
    import boto3

    answers, content = Answers(), os.urandom(MEGABYTES * 1_000_000)
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    answers.tell()
    for ask in requests():
        began_s, cpu_s, count = time.monotonic(), time.process_time(), 0
        while time.monotonic() < began_s + ask["wait_s"]:
            if ask["url"]:
                _through(ask["url"], content)
            else:
                _direct(client, content)
            count += 1
        answers.tell(
            megabytes=count * MEGABYTES,
            wall_s=time.monotonic() - began_s,
            cpu_s=time.process_time() - cpu_s,
        )


if __name__ == "__main__":
    main()
