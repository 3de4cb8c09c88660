"""Which faults of MLflow are for good, and which are only those of a bad day."""

import errno
import sys

import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    UNAUTHENTICATED,
    ErrorCode,
)

from opusclip_mlops.redaction import one_line

LOG_IN = (
    "nobody is logged in there: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and "
    "look whether they are right"
)
"""What a server that asks for a password means by its 401."""

EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)
MISSING = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_FOR_GOOD = {ErrorCode.Name(BAD_REQUEST), ErrorCode.Name(INVALID_PARAMETER_VALUE), EXISTS, MISSING}
_LOCAL_FOR_GOOD = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)  # fmt: skip
_S3_CLIENT = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("boto3.exceptions", "Boto3Error"),
)
_S3_FOR_GOOD = frozenset({"403", "404", "AccessDenied", "NoSuchBucket", "NoSuchKey"})


def asking_faults() -> tuple[type[Exception], ...]:
    """What asking MLflow, or the store of its artifacts, may raise: for an `except` clause.

    The S3 client's faults are exceptions of its own, and it is loaded by who uses it only.
    """
    names = ((sys.modules.get(module), name) for module, name in _S3_CLIENT)
    loaded = [getattr(module, name) for module, name in names if module is not None]
    return MlflowException, OSError, *loaded


def is_for_good(error: Exception) -> bool:
    """Whether it is of no use to ask again.

    MLflow itself refuses, or a file is there for nobody; a web server before MLflow that answers
    400 may have a bad day.
    """
    if _s3_code(error) in _S3_FOR_GOOD:
        return True
    if isinstance(error, requests.HTTPError):
        return _answered(error) in _FOR_GOOD
    if not isinstance(error, MlflowException):
        return isinstance(error, OSError) and error.errno in _LOCAL_FOR_GOOD
    is_foreign = str(error.message).startswith("API request to ")
    return error.error_code in _FOR_GOOD and not (
        is_foreign and not isinstance(error, RestException)
    )


def is_shut_out(error: Exception) -> bool:
    """Whether this user is not let in, or may not: who waits there waits in vain.

    It is not for good: who has something to deliver may be let in later.
    """
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code in (401, 403)
    named = {ErrorCode.Name(UNAUTHENTICATED), ErrorCode.Name(PERMISSION_DENIED)}
    return isinstance(error, MlflowException) and error.error_code in named


def _is_login_missing(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code == 401
    code = ErrorCode.Name(UNAUTHENTICATED)
    return isinstance(error, MlflowException) and error.error_code == code


def _s3_code(error: Exception) -> str:
    """The code in an answer of S3, empty when it is none."""
    answer = getattr(error, "response", None)
    about = answer.get("Error") if isinstance(answer, dict) else None
    return str(about.get("Code", "")) if isinstance(about, dict) else ""


def _answered(error: requests.HTTPError) -> str:
    """The code in the answer of MLflow's artifact server, empty when it is not MLflow's."""
    try:
        return str(error.response.json()["error_code"]) if error.response is not None else ""
    except (ValueError, KeyError, TypeError):
        return ""


def reason_of(error: Exception) -> str:
    """What the fault says, on one line and without credentials."""
    if _is_login_missing(error):
        return LOG_IN
    text = str(error.message) if isinstance(error, MlflowException) else str(error)
    return one_line(text) or type(error).__name__
