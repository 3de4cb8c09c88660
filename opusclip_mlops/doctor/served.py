"""Artifacts that go by way of the server: written, read, listed, taken away again."""

from __future__ import annotations

import posixpath
import secrets

from opusclip_mlops.doctor.bucket import CONTENT, artifact_root
from opusclip_mlops.doctor.findings import Check, Finding, Subject, failed, ok, skipped, warning
from opusclip_mlops.doctor.web import Answer, Server

_API = "api/2.0/mlflow-artifacts/artifacts"
_SCHEME = "mlflow-artifacts:"
_NOT_YOURS = "Permission denied"
_MEANINGS = {
    401: "compare MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    403: "ask its administrator for EDIT on its newest experiment, or make one of your own",
    404: "serve with --serve-artifacts",
    413: "raise client_max_body_size of the web server before MLflow",
    500: "look at the server's log: its key, bucket or disk",
    503: "serve with --serve-artifacts",
}


def artifacts(subject: Subject) -> Finding:
    """Whether a small file can be written, read, listed and deleted by way of the server."""
    root = artifact_root(subject)
    if not root.startswith(_SCHEME):
        return skipped("files do not go by way of the server")
    server = Server(subject.tracking_uri)
    folder = root.removeprefix(_SCHEME).strip("/")
    if folder.startswith("//"):
        folder = folder.lstrip("/").partition("/")[2]
    name = f"opusclip-doctor-{secrets.token_hex(8)}.txt"
    path = posixpath.join(_API, folder, name)
    written = server.ask(path, method="PUT", data=CONTENT)
    if written.status != 200:
        return _refused("written", written)
    return _looked_at(server, path, folder)


def _looked_at(server: Server, path: str, folder: str) -> Finding:
    """Read, list and delete what was written."""
    read = server.ask(path)
    listed = server.ask(_API, params={"path": folder})
    deleted = server.ask(path, method="DELETE")
    left = "" if deleted.status == 200 else f"; {posixpath.basename(path)} stays behind"
    for action, answer in (("read", read), ("listed", listed), ("deleted", deleted)):
        if answer.status != 200:
            found = _refused(action, answer)
            return failed(f"{found.seen}{left}", found.todo)
    names = [one.get("path") for one in listed.content.get("files", [])]
    if read.text != CONTENT.decode() or posixpath.basename(path) not in names:
        seen = "what was written comes back otherwise, or is not listed"
        return failed(f"{seen}{left}", "two servers with one name, each with files of its own?")
    waited_ms = (read.answered_s - read.asked_s) * 1000
    return ok(f"write, read, list, delete: {len(CONTENT)} bytes, read in {waited_ms:.0f} ms")


def _refused(action: str, answer: Answer) -> Finding:
    todo = _MEANINGS.get(answer.status, "look at the server's log")
    if answer.status == 403 and _NOT_YOURS in answer.text:
        seen = (
            f"cannot be {action}: the newest experiment is not this user's to write ({_NOT_YOURS})"
        )
        return warning(seen, todo)
    return failed(f"cannot be {action}: {answer.status} {answer.reason}", todo)


CHECKS = (Check(name="artifacts.served", look=artifacts, after="artifacts.place"),)
"""In the order they are told in."""
