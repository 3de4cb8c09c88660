"""Where artifacts lie: a bucket, by the actions it allows; what is written there is taken away."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from opusclip_mlops.doctor.findings import (
    LOADING,
    Check,
    Finding,
    Subject,
    Told,
    failed,
    is_web,
    note,
    ok,
    skipped,
    warning,
)
from opusclip_mlops.doctor.web import Server, skew_of
from opusclip_mlops.faults import attempted
from opusclip_mlops.object_storage import SETTING, code_of, feed
from opusclip_mlops.redaction import one_line

CONNECT_S, READ_S = 3, 6
LONGEST_UPLOAD_S = 86_400
"""An upload in parts that was begun longer ago is taken for one that was broken off."""
_EXPERIMENTS = "api/2.0/mlflow/experiments/search"
HISTORIES = "opusclip registry"
"""The experiment of `ledger`, which is not loaded for its name: MLflow would be."""
CONTENT = b"written by opusclip doctor, and taken away again\n"
_POLICY = {
    "write": "PutObject",
    "read": "GetObject",
    "list": "ListBucket",
    "delete": "DeleteObject",
}
_CODES = {
    "SignatureDoesNotMatch": ("the secret key is wrong", "compare AWS_SECRET_ACCESS_KEY"),
    "InvalidAccessKeyId": ("the access key is unknown there", "compare AWS_ACCESS_KEY_ID"),
    "ExpiredToken": ("the session token has expired", "log in again for AWS_SESSION_TOKEN"),
    "NoSuchBucket": (
        "there is no such bucket",
        "make it: aws s3 mb s3://BUCKET; or compare its name",
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock and the store's differ by too much",
        "set both by NTP: timedatectl set-ntp true",
    ),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_DEFAULT_REGION"),
    "301": ("the bucket is in another region", "set AWS_DEFAULT_REGION"),
    "AuthorizationHeaderMalformed": ("the region is wrong", "set AWS_DEFAULT_REGION"),
    "InvalidLocationConstraint": ("the region is wrong", "set AWS_DEFAULT_REGION"),
    "MethodNotAllowed": ("what answers there is not an S3 API", "compare MLFLOW_S3_ENDPOINT_URL"),
    "SlowDown": ("the store is overloaded", "try again"),
}
_FAULTS = {
    "NoCredentialsError": (
        "there is no key for it here",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or let the server pass files on",
    ),
    "ParamValidationError": ("no bucket can have this name", "compare it"),
    "PartialCredentialsError": ("half of the key is set", "set AWS_SECRET_ACCESS_KEY too"),
    "EndpointConnectionError": (
        "nothing answers at {}",
        "start it, or compare MLFLOW_S3_ENDPOINT_URL; where the bucket stands before the host, "
        "set MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE=path",
    ),
    "ConnectTimeoutError": (
        f"{{}} does not answer within {CONNECT_S} s",
        "compare MLFLOW_S3_ENDPOINT_URL; a firewall answers like this",
    ),
    "ReadTimeoutError": (
        f"{{}} takes the request and says nothing within {READ_S} s",
        "look at the store's log",
    ),
    "ConnectionClosedError": ("{} ends the connection", "http for https? look at its log"),
    "SSLError": (
        "{} shows a certificate that is not trusted",
        "set AWS_CA_BUNDLE=ca.pem",
    ),
    "ResponseParserError": (
        "what answers at {} is not an S3 API",
        "compare MLFLOW_S3_ENDPOINT_URL",
    ),
}


def place(subject: Subject) -> Finding:
    """Where the files of new runs go."""
    root = artifact_root(subject)
    if not root:
        return skipped("no server and no --artifacts to look at")
    if root.startswith(("s3://", "mlflow-artifacts:")):
        way = "directly" if root.startswith("s3://") else "by way of the server"
        found = ok(f"files go {way} to {root}")
        contradictions = feed(dict(os.environ))
        todo = f"unset it, or {SETTING}"
        return found.worsened(warning("; ".join(contradictions), todo)) if contradictions else found
    if is_web(subject.tracking_uri) and not subject.artifacts:
        seen = f"files go to {root}: a path that this machine and the server must share"
        return note(seen, "serve with --artifacts-destination, so that files go by the server")
    return note(f"files go to {root}, which is not looked at")


def artifact_root(subject: Subject) -> str:
    """What was given, or where the server's newest experiment keeps files; empty for none.

    An older one may keep them where the server once put them. That of the histories is nobody's.
    """
    if subject.artifacts or not is_web(subject.tracking_uri):
        return subject.artifacts
    newest = {
        "max_results": 1,
        "order_by": ["creation_time DESC"],
        "filter": f"name != '{HISTORIES}'",
    }
    try:
        answer = Server(subject.tracking_uri).ask(_EXPERIMENTS, method="POST", json=newest)
    except Told as told:
        raise Told(skipped("the server does not say where files go: see server.reach")) from told
    if answer.status != 200:
        raise Told(skipped(f"the server does not say where files go ({answer.status})"))
    found = answer.content.get("experiments") or [{}]
    return str(found[0].get("artifact_location", ""))


@dataclass
class Bucket:
    """A bucket, with what is written in this check and is not away again."""

    uri: str
    client: Any
    left: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The bucket's own name."""
        return urlsplit(self.uri).netloc

    def fresh_key(self) -> str:
        """A name that nothing in the bucket has."""
        prefix = urlsplit(self.uri).path.strip("/")
        return f"{prefix}/.opusclip-doctor/{secrets.token_hex(8)}".lstrip("/")


def opened(uri: str) -> Bucket:
    """A bucket by its URI, asked once without trying again, with MLflow's and boto3's settings."""
    with LOADING:
        import boto3
        import botocore.config

        client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint(),
            verify=False if _is_true("MLFLOW_S3_IGNORE_TLS") else None,
            config=botocore.config.Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": _variable("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")},
                signature_version=_variable("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "s3v4"),
            ),
        )
    return Bucket(uri, client)


def endpoint() -> str | None:
    """Where the S3 API is; None for Amazon's own, or what boto3 itself is told."""
    return _variable("MLFLOW_S3_ENDPOINT_URL") or _variable(SETTING) or None


def _variable(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def _is_true(name: str) -> bool:
    return _variable(name).lower() in ("1", "true")


def explained(fault: Exception, action: str, bucket: Bucket) -> Finding:
    """What a fault of the S3 client means, and what to do."""
    if isinstance(fault, Told):
        return fault.finding
    code = code_of(fault)
    meaning, todo = _CODES.get(code) or _FAULTS.get(type(fault).__name__) or ("", "")
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        meaning = f"this key may not {action} in {bucket.name}"
        todo = f"allow it s3:{_POLICY.get(action, 'PutObject')} on {bucket.uri.rstrip('/')}/*"
    meaning = meaning.replace("{}", str(bucket.client.meta.endpoint_url))
    if not meaning:
        meaning, todo = f"{type(fault).__name__}: {fault}", "look at the store's log"
    told = f" ({code})" if code else ""
    return failed(one_line(meaning + told), todo.replace("BUCKET", bucket.name))


def reach(subject: Subject) -> Finding:
    """Whether the bucket is there, and knows the key."""
    root = artifact_root(subject)
    if not root.startswith("s3://"):
        return skipped("no files go to S3 from here")
    bucket = opened(root)
    began_s = time.monotonic()
    fault = attempted(lambda: bucket.client.head_bucket(Bucket=bucket.name))
    if fault is not None and code_of(fault) in ("400", "403", "404"):
        # A HEAD tells no reason; listing tells one, and may itself be what this key may not.
        fault = _asked_for_reason(bucket)
    if fault is not None and code_of(fault) != "AccessDenied":
        return explained(fault, "list", bucket)
    waited_ms = (time.monotonic() - began_s) * 1000
    return ok(f"{bucket.name} at {bucket.client.meta.endpoint_url} answers in {waited_ms:.0f} ms")


def _asked_for_reason(bucket: Bucket) -> Exception | None:
    asked = {"Bucket": bucket.name, "MaxKeys": 1}
    return attempted(lambda: bucket.client.list_objects_v2(**asked))


def clock(subject: Subject) -> Finding:
    """How far the store's clock is off this machine's; S3 refuses at 15 minutes."""
    bucket = opened(artifact_root(subject))
    answers: list[Any] = []
    asked_s = time.time()
    fault = attempted(lambda: answers.append(bucket.client.head_bucket(Bucket=bucket.name)))
    answered_s = time.time()
    answer = answers[0] if answers else getattr(fault, "response", {})
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return skew_of(
        headers.get("date"), asked_s=asked_s, answered_s=answered_s, whose="the store's clock"
    )


def objects(subject: Subject) -> Finding:
    """Whether a small object can be written, read, listed and deleted."""
    bucket = opened(artifact_root(subject))
    key = bucket.fresh_key()
    ours = {"Bucket": bucket.name, "Key": key}
    if fault := attempted(lambda: bucket.client.put_object(**ours, Body=CONTENT)):
        return explained(fault, "write", bucket)
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: _read_back(bucket, key),
        "list": lambda: _listed(bucket, key),
        "delete": lambda: bucket.client.delete_object(**ours),
    }
    return _tried(actions, bucket, key)


def _tried(actions: dict[str, Callable[[], object]], bucket: Bucket, key: str) -> Finding:
    """What came of each; what cannot be taken away is named."""
    refused, done = {}, ["write"]
    for action, act in actions.items():
        if fault := attempted(act):
            refused[action] = explained(fault, action, bucket)
        else:
            done.append(action)
    if not refused:
        return ok(f"{', '.join(done)}: {len(CONTENT)} bytes there and away again")
    seen = "; ".join(one.seen for one in refused.values())
    todo = "; ".join(dict.fromkeys(one.todo for one in refused.values()))
    left = f"; s3://{bucket.name}/{key} stays behind" if "delete" in refused else ""
    return failed(f"{seen}; {', '.join(done)} work{left}", todo)


def _read_back(bucket: Bucket, key: str) -> None:
    content = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    if content != CONTENT:
        todo = "look at what stands between: a proxy that changes what passes?"
        raise Told(failed(f"{len(CONTENT)} bytes came back as {len(content)} others", todo))


def _listed(bucket: Bucket, key: str) -> None:
    found = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=key).get("Contents", [])
    if [one["Key"] for one in found] != [key]:
        raise Told(failed("what was written is not listed", "look at the store's log"))


def multipart(subject: Subject) -> Finding:
    """Whether a file can go in parts, as checkpoints do, and be given up half way."""
    bucket = opened(artifact_root(subject))
    key = bucket.fresh_key()
    fault = attempted(lambda: _sent_in_parts(bucket, key))
    left = _cleared(bucket, key)
    fault = fault or attempted(lambda: _given_up(bucket, bucket.fresh_key()))
    if fault is not None:
        found = explained(fault, "write", bucket)
        return failed(f"in parts: {found.seen}{left}", found.todo)
    if left:
        return failed(f"in parts: sent{left}", "allow it s3:DeleteObject")
    return ok("begun, sent, put together and given up")


def _sent_in_parts(bucket: Bucket, key: str) -> None:
    ours = {"Bucket": bucket.name, "Key": key}
    upload = bucket.client.create_multipart_upload(**ours)["UploadId"]
    try:
        tag = bucket.client.upload_part(**ours, UploadId=upload, PartNumber=1, Body=CONTENT)
        parts = {"Parts": [{"PartNumber": 1, "ETag": tag["ETag"]}]}
        bucket.client.complete_multipart_upload(**ours, UploadId=upload, MultipartUpload=parts)
    except BaseException:
        attempted(lambda: bucket.client.abort_multipart_upload(**ours, UploadId=upload))
        raise


def _given_up(bucket: Bucket, key: str) -> None:
    ours = {"Bucket": bucket.name, "Key": key}
    upload = bucket.client.create_multipart_upload(**ours)["UploadId"]
    bucket.client.abort_multipart_upload(**ours, UploadId=upload)


def _cleared(bucket: Bucket, key: str) -> str:
    """Take an object away; what to say of it where that cannot be done."""
    is_gone = attempted(lambda: bucket.client.delete_object(Bucket=bucket.name, Key=key)) is None
    if is_gone:
        return ""
    if attempted(lambda: bucket.client.head_object(Bucket=bucket.name, Key=key)):
        return ""
    return f"; s3://{bucket.name}/{key} stays behind"


def unfinished(subject: Subject) -> Finding:
    """Whether uploads were begun and never ended: their parts take room that no listing shows."""
    bucket = opened(artifact_root(subject))
    prefix = urlsplit(bucket.uri).path.strip("/")
    asked = {"Bucket": bucket.name, "Prefix": prefix}
    answers: list[Any] = []
    if attempted(lambda: answers.append(bucket.client.list_multipart_uploads(**asked))):
        return skipped(f"this key may not list unfinished uploads in {bucket.name}")
    begun = [one["Initiated"].timestamp() for one in answers[0].get("Uploads", [])]
    old = [one for one in begun if time.time() - one >= LONGEST_UPLOAD_S]
    if not old:
        return ok(f"{len(begun)} under way, none older than {LONGEST_UPLOAD_S // 3600} h")
    more = " or more" if answers[0].get("IsTruncated") else ""
    oldest_h = (time.time() - min(old)) / 3600
    return warning(
        f"{len(old)}{more} were begun and never ended, the oldest {oldest_h:.0f} h ago",
        "have the bucket remove them: a lifecycle rule with AbortIncompleteMultipartUpload",
    )


CHECKS = (
    Check(name="artifacts.place", look=place),
    Check(name="artifacts.bucket", look=reach, after="artifacts.place"),
    Check(name="artifacts.clock", look=clock, after="artifacts.bucket"),
    Check(name="artifacts.objects", look=objects, after="artifacts.bucket"),
    Check(name="artifacts.multipart", look=multipart, after="artifacts.bucket"),
    Check(name="artifacts.unfinished", look=unfinished, after="artifacts.bucket"),
)
"""In the order they are told in."""
