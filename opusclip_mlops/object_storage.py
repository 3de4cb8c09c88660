"""One setting for the S3 that everything here goes to, and how long a dead one is waited for.

`OPUSCLIP_S3_ENDPOINT_URL` is brought into the variables that MLflow, boto3, W&B and TensorBoard
read, each of which has a name of its own for it. Importing the package does so; what a user has set
himself is left as it is.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

SETTING = "OPUSCLIP_S3_ENDPOINT_URL"

VARIABLES = {
    "MLFLOW_S3_ENDPOINT_URL": "MLflow",
    "AWS_ENDPOINT_URL_S3": "boto3",
    "AWS_S3_ENDPOINT_URL": "W&B",
    "S3_ENDPOINT": "TensorBoard",
}
"""The variables that the setting feeds, and who reads each."""

CONNECT_S = 5.0
"""How long a connection to S3 may take to come about, in seconds."""

READ_S = 30.0
"""How long S3 may be silent in an answer that somebody waits for, in seconds."""

_SLOWEST_BYTES_A_SECOND = 4 * 2**20
_HTTP_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_BRIEFLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", _HTTP_TIMEOUT: "30"}
_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_ADVICE = {
    "SignatureDoesNotMatch": _KEYS,
    "InvalidAccessKeyId": _KEYS,
    "ExpiredToken": "the session's AWS_SESSION_TOKEN has run out",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AccessDenied": "the key may not do that in this bucket",
    "NoSuchBucket": "make the bucket, or mend the artifact location",
    "EntityTooLarge": "the server takes no file of this size",
}
_NO_KEYS = {"NoCredentialsError", "PartialCredentialsError"}
_NO_ANSWER = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"}


def feed(environment: MutableMapping[str, str]) -> tuple[str, ...]:
    """Bring the setting into the variables that others read; a line for each that says another.

    Nothing is done without the setting. A variable that is set stays as it is. Doing it again does
    nothing.

    Args:
        environment: The variables to change, such as `os.environ`.
    """
    endpoint = environment.get(SETTING, "").strip()
    if not endpoint:
        return ()
    if problem := problem_with(endpoint):
        return (f"{SETTING} {problem}: it is not used",)
    for name, value in _fed(endpoint, environment).items():
        environment.setdefault(name, value)
    return tuple(
        f"{name} is set to another address than {SETTING}: {reader} goes there"
        for name, reader in VARIABLES.items()
        if environment[name].rstrip("/") != endpoint.rstrip("/")
    )


def problem_with(endpoint: str) -> str:
    """What is wrong with the address of an S3, empty where nothing is."""
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        return "is no address such as https://s3.example.com or http://127.0.0.1:9000"
    if parts.username or parts.password:
        return "holds a name or a password: give those as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    if parts.query or parts.fragment or parts.path not in ("", "/"):
        return "names more than a server: a bucket belongs into the artifact location"
    return ""


def _fed(endpoint: str, environment: Mapping[str, str]) -> dict[str, str]:
    fed = dict.fromkeys(VARIABLES, endpoint)
    # TensorBoard beside TensorFlow reads these too.
    fed["S3_USE_HTTPS"] = "1" if endpoint.startswith("https:") else "0"
    if _is_true(environment.get("MLFLOW_S3_IGNORE_TLS", "")):
        fed["S3_VERIFY_SSL"] = "0"
    return fed


def _is_true(text: str) -> bool:
    return text.strip().lower() in ("true", "1")


def advice_on(fault: Exception) -> str:
    """What S3 has against a request, and what to do: empty where the fault is none of S3's.

    It names the kind of the fault alone: the text of one may hold what is secret.
    """
    for one in (fault, fault.__cause__ or fault.__context__):
        kind, code = type(one).__name__, code_of(one)
        if kind in _NO_KEYS:
            return f"no key for S3 ({kind}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if kind in _NO_ANSWER:
            return f"S3 does not answer ({kind})"
        if code:
            advice = _ADVICE.get(code, "")
            return f"S3 says {code}: {advice}" if advice else f"S3 says {code}"
    return ""


def code_of(fault: object) -> str:
    """The code in an answer of S3, empty when it is none."""
    answer = getattr(fault, "response", None)
    about = answer.get("Error") if isinstance(answer, dict) else None
    code = str(about.get("Code", "")) if isinstance(about, dict) else ""
    return code if code.isalnum() and len(code) <= 64 else ""


def session() -> Any:
    """A new boto3 session whose clients find soon that S3 is gone; they use the user's own keys."""
    import boto3
    import botocore.config
    import botocore.session

    ours = botocore.session.get_session()
    ours.set_default_client_config(
        botocore.config.Config(connect_timeout=CONNECT_S, read_timeout=READ_S)
    )
    return boto3.Session(botocore_session=ours)


def client() -> Any:
    """A client of the S3 that MLflow's own variables name, with the keys boto3 finds."""
    import botocore.config

    style = os.environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")
    return session().client(
        "s3",
        endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
        verify=False if _is_true(os.environ.get("MLFLOW_S3_IGNORE_TLS", "")) else None,
        config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": style}),
    )


def use(ours: Any) -> None:
    """Have all S3 clients of this process, MLflow's among them, be of a session from now on.

    For processes of our own only: one that trains keeps what it has.
    """
    import boto3

    boto3.DEFAULT_SESSION = ours


_session_of_questions = functools.cache(session)


@contextlib.contextmanager
def asking_briefly() -> Iterator[None]:
    """For the time of a block, MLflow and S3 give up within a minute where nobody answers.

    What the user has set counts, and afterwards everything is as before: MLflow's seven retries
    would wait for four minutes, boto3's three for three.
    """
    import boto3

    before = boto3.DEFAULT_SESSION
    with _set_where_unset(_BRIEFLY):
        boto3.DEFAULT_SESSION = before or _session_of_questions()
        try:
            yield
        finally:
            boto3.DEFAULT_SESSION = before


def is_reachable(url: str) -> bool:
    """Whether a server answers at an address, whatever it says.

    Not where nobody does, nor where its certificate is not trusted or a proxy does not let us.
    """
    import requests

    parts = urlsplit(url)
    try:
        requests.head(
            f"{parts.scheme}://{parts.netloc}/",
            verify=not _is_true(os.environ.get("MLFLOW_S3_IGNORE_TLS", "")),
            timeout=CONNECT_S,
            allow_redirects=False,
        )
    except requests.RequestException:
        return False
    return True


def through_the_server() -> contextlib.AbstractContextManager[None]:
    """For the time of a block, MLflow's server sends its files itself, unless the user says no.

    It would rather have them fetched from S3, by addresses that it signs: where that S3 is out of
    reach, nothing comes of it.
    """
    return _set_where_unset({"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"})


@contextlib.contextmanager
def waiting_for(size_bytes: int, *, least_s: float = 30.0) -> Iterator[None]:
    """For the time of a block, MLflow's server may be silent for as long as such a file takes.

    It answers only once it has put the file into S3 itself. What the user has set to more counts.
    """
    needed_s = int(max(least_s, size_bytes / _SLOWEST_BYTES_A_SECOND))
    before = os.environ.get(_HTTP_TIMEOUT)
    try:
        is_enough = float(before or 0) >= needed_s
    except ValueError:
        is_enough = True
    if is_enough:
        yield
        return
    os.environ[_HTTP_TIMEOUT] = str(needed_s)
    try:
        yield
    finally:
        os.environ.pop(_HTTP_TIMEOUT)
        if before is not None:
            os.environ[_HTTP_TIMEOUT] = before


@contextlib.contextmanager
def _set_where_unset(variables: Mapping[str, str]) -> Iterator[None]:
    unset = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in unset})
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)
