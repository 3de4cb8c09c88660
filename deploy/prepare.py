"""What a new installation lacks: the bucket, and the accounts of parts that are no person.

prepare.py bucket NAME
prepare.py accounts NAME…     passwords in $OPUSCLIP_SECRETS: admin_password, NAME_password

Both may be run again at any time, and wait for a store or a server that is not up yet.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 120.0
AGAIN_S = 1.0


def main(argv: list[str]) -> None:
    """Do what the command says."""
    match argv:
        case ["bucket", name]:
            patiently(lambda: make_bucket(storage_client(), name), OSError)
        case ["accounts", *names] if names:
            make_accounts(names, Path(os.environ["OPUSCLIP_SECRETS"]))
        case _:
            sys.exit(__doc__)


def secret(name: str) -> str:
    """A setting, or what stands in the file that NAME_FILE names."""
    file = os.environ.get(f"{name}_FILE")
    return Path(file).read_text().rstrip("\n") if file else os.environ[name]


def storage_client() -> Any:
    """A client of the object store."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=secret("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=secret("AWS_SECRET_ACCESS_KEY"),
        region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


def make_bucket(client: Any, name: str) -> None:
    """Make a bucket unless it is there.

    Raises:
        OSError: The store cannot be reached, or says no.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if name not in {one["Name"] for one in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        client.head_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"bucket {name}: {error}") from error
    print(f"bucket {name} is there")


def make_accounts(names: list[str], secrets: Path) -> None:
    """Accounts with the passwords of their files; one whose file changed gets the new one."""
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    # The client takes both from the environment only.
    os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = _password(secrets, "admin")
    client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
    for name in names:
        password = _password(secrets, name)
        patiently(functools.partial(_account, client, name, password), MlflowException)


def _password(secrets: Path, name: str) -> str:
    return (secrets / f"{name}_password").read_text().rstrip("\n")


def _account(client: Any, name: str, password: str) -> None:
    from mlflow.exceptions import RestException

    try:
        client.create_user(name, password)
        print(f"account {name} made")
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.update_user_password(name, password)
        print(f"account {name} is there")


def patiently(call: Callable[[], None], fault: type[Exception]) -> None:
    """Try until it is done, for two minutes.

    Raises:
        SystemExit: It could not be done; says why.
    """
    end = time.monotonic() + WAIT_S
    while True:
        try:
            return call()
        except fault as error:
            if time.monotonic() > end:
                sys.exit(f"error: {error}")
            print(f"not yet: {error}", file=sys.stderr)
            time.sleep(AGAIN_S)


if __name__ == "__main__":
    main(sys.argv[1:])
