"""Which faults of MLflow are for good, and which are only those of a bad day."""

import errno

import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from opusclip_mlops.redaction import one_line

EXISTS = ErrorCode.Name(RESOURCE_ALREADY_EXISTS)
MISSING = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_FOR_GOOD = {ErrorCode.Name(BAD_REQUEST), ErrorCode.Name(INVALID_PARAMETER_VALUE), EXISTS, MISSING}
_LOCAL_FOR_GOOD = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)  # fmt: skip


def is_for_good(error: Exception) -> bool:
    """Whether it is of no use to ask again.

    MLflow itself refuses, or a file is there for nobody; a web server before MLflow that answers
    400 may have a bad day.
    """
    if isinstance(error, requests.HTTPError):
        return _answered(error) in _FOR_GOOD
    if not isinstance(error, MlflowException):
        return isinstance(error, OSError) and error.errno in _LOCAL_FOR_GOOD
    is_foreign = str(error.message).startswith("API request to ")
    return error.error_code in _FOR_GOOD and not (
        is_foreign and not isinstance(error, RestException)
    )


def _answered(error: requests.HTTPError) -> str:
    """The code in the answer of MLflow's artifact server, empty when it is not MLflow's."""
    try:
        return str(error.response.json()["error_code"]) if error.response is not None else ""
    except (ValueError, KeyError, TypeError):
        return ""


def reason_of(error: Exception) -> str:
    """What the fault says, on one line and without credentials."""
    text = str(error.message) if isinstance(error, MlflowException) else str(error)
    return one_line(text) or type(error).__name__
