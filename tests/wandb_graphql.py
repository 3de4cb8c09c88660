"""The questions a W&B client asks its server, by the names of their GraphQL operations."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

from tests.wandb_artifacts import ArtifactAnswers
from tests.wandb_store import HISTORY, SUMMARY, Document, Store
from tests.wandb_sweeps import SweepAnswers

ENTITY = "team"
"""The entity of everyone who has a key."""

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
_STEP = re.compile(r'"_step": ?(\d+)')
_PAGE_FILES = 50
_STATES = {0: "finished", 255: "killed"}


class Refused(Exception):
    """An answer that is an error: its HTTP status and its text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def operation_of(query: str) -> str:
    """The name of a query's operation."""
    found = _OPERATION.search(query)
    return found[1] if found else query[:80]


class Graphql:
    """Answers operations by their names; one it does not know is an error that is remembered."""

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url
        self._answers: dict[str, Callable[[Document], Document]] = {
            "Viewer": lambda _: {"viewer": _VIEWER},
            "GetViewer": lambda _: {"viewer": _VIEWER},
            "GetDefaultEntity": lambda _: {"viewer": _VIEWER},
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": {"organization": None}},
            "UpsertBucket": self._upsert_bucket,
            "RunResumeStatus": self._resume_status,
            "RewindRun": self._rewind,
            "RunStoppedStatus": lambda _: {"project": {"run": {"stopped": False}}},
            "CreateRunFiles": self._create_run_files,
            "DeleteRun": self._delete_run,
            "Run": self._run,
            "RunState": self._run,
            "QueryRunInfo": self._run,
            "GetRunState": self._run,
            "Runs": self._runs,
            "HistoryPage": self._history,
            "RunFullHistory": self._history,
            "RunParquetHistory": self._parquet_history,
            "RunHistoryKeys": self._run,
            "RunFiles": self._run_files,
            "NotifyScriptableRunAlert": self._alert,
            **ArtifactAnswers(store, url).answers(),
            **SweepAnswers(store).answers(),
        }

    def answer(self, query: str, variables: Document) -> Document:
        """The `data` of the answer.

        Raises:
            Refused: there is no such operation, or it can't be done.
        """
        name = operation_of(query)
        if name not in self._answers:
            self._store.put("unknown", name, {"operation": name, "query": query})
            raise Refused(200, f"the stub has no answer to {name}")
        return self._answers[name](variables)

    def _upsert_bucket(self, asked: Document) -> Document:
        path = asked.get("id") or self._path(asked, asked.get("name"))
        run = self._store.get("run", path)
        inserted = run is None
        if inserted and self._store.get("deleted", path):
            name = path.rpartition("/")[2]
            raise Refused(409, f"run {name} was previously created and deleted; try a new run name")
        run = run or _new_run(path)
        fields = ("displayName", "notes", "tags", "groupName", "jobType", "description")
        asked = asked | {"displayName": asked.get("displayName") or asked.get("display_name")}
        run |= {name: asked[name] for name in fields if asked.get(name) is not None}
        if asked.get("config"):
            run["config"] = json.loads(asked["config"])
        if asked.get("summaryMetrics"):
            self._store.write_lines(path, SUMMARY, 0, [asked["summaryMetrics"]])
        self._store.put("run", path, run)
        return {"upsertBucket": {"bucket": self._node(run), "inserted": inserted}}

    def _alert(self, asked: Document) -> Document:
        self._store.put("alert", f"{asked['runName']}/{asked['title']}", asked)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _path(self, asked: Document, name: str | None) -> str:
        entity, project = asked.get("entity") or ENTITY, asked.get("project") or "uncategorized"
        return f"{entity}/{project}/{name}"

    def _resume_status(self, asked: Document) -> Document:
        path = self._path(asked, asked["name"])
        run = self._store.get("run", path)
        entity, project, _ = path.split("/")
        bucket = None
        if run:
            tails = {
                "historyTail": json.dumps(self._store.last_lines(path)),
                "eventsTail": json.dumps(self._store.last_lines(path, "wandb-events.jsonl")),
                "logLineCount": self._store.line_count(path, "output.log"),
                "eventsLineCount": self._store.line_count(path, "wandb-events.jsonl"),
                "wandbConfig": json.dumps({"t": {"1": []}}),
            }
            bucket = self._node(run) | tails
        model = {"id": project, "name": project, "entity": {"id": entity, "name": entity}}
        return {"model": model | {"bucket": bucket}}

    def _rewind(self, asked: Document) -> Document:
        path = self._path(asked, asked["runName"])
        run = self._store.get("run", path)
        if run is None:
            raise Refused(404, f"no run {path}")
        lines = self._store.lines(path)
        kept = sum(json.loads(line)["_step"] <= asked["metricValue"] for line in lines)
        self._store.cut_lines(path, HISTORY, count=kept)
        return {"rewindRun": {"rewoundRun": self._node(run)}}

    def _create_run_files(self, asked: Document) -> Document:
        path = f"{asked['entity']}/{asked['project']}/{asked['run']}"
        files = [
            {"name": name, "uploadUrl": f"{self._url}/upload/{quote(f'runs/{path}/{name}')}"}
            for name in asked["files"]
        ]
        return {"createRunFiles": {"runID": path, "uploadHeaders": [], "files": files}}

    def _delete_run(self, asked: Document) -> Document:
        path = asked["id"]
        self._store.remove("run", path)
        self._store.cut_lines(path)
        self._store.put("deleted", path, {"path": path})
        return {"deleteRun": {"clientMutationId": None}}

    def _found(self, asked: Document) -> Document | None:
        name = asked.get("name") or asked.get("runName") or asked.get("run")
        return self._store.get("run", self._path(asked, name))

    def _run(self, asked: Document) -> Document:
        run = self._found(asked)
        return {"project": {"run": run and self._node(run)}}

    def _runs(self, asked: Document) -> Document:
        below = self._path(asked, "")
        found = [one for one in self._store.all("run") if one["path"].startswith(below)]
        edges = [{"node": self._node(run), "cursor": run["name"]} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        about = {"internalId": "1", "runCount": len(found), "readOnly": False}
        return {"project": about | {"runs": {"edges": edges, "pageInfo": page}}}

    def _history(self, asked: Document) -> Document:
        run = self._found(asked)
        if not run:
            return {"project": {"run": None}}
        lines = self._store.lines(run["path"])
        first, behind = asked.get("minStep"), asked.get("maxStep")
        if first is not None and behind is not None:
            lines = [line for line in lines if first <= _step_of(line) < behind]
        told = [json.dumps(json.loads(line, parse_constant=str)) for line in lines]
        return {"project": {"run": {"history": told}}}

    def _parquet_history(self, asked: Document) -> Document:
        run = self._found(asked)
        rows = self._rows(run["path"]) if run else []
        only = [{key: row.get(key) for key in asked["liveKeys"]} for row in rows]
        history = {"parquetUrls": [], "liveData": only}
        return {"project": {"run": run and {"parquetHistory": history}}}

    def _summary(self, path: str) -> Document:
        lines = self._store.last_lines(path, SUMMARY) or ["{}"]
        return dict(json.loads(lines[0], parse_constant=str))

    def _rows(self, path: str) -> list[Document]:
        """A run's rows as the server tells them: no JSON has a NaN."""
        return [json.loads(line, parse_constant=str) for line in self._store.lines(path)]

    def _run_files(self, asked: Document) -> Document:
        run = self._found(asked)
        below = f"runs/{run['path']}/" if run else "none"
        names = asked.get("fileNames") or asked.get("names") or []
        found = self._store.blob_names(below)
        nodes = [
            self._file(name, below)
            for name in found
            if not names or name.removeprefix(below) in names
        ]
        first = int(asked.get("fileCursor") or 0)
        behind = first + int(asked.get("fileLimit") or _PAGE_FILES)
        edges = [
            {"node": node, "cursor": str(number)}
            for number, node in enumerate(nodes[first:behind], first + 1)
        ]
        page = {"endCursor": edges and edges[-1]["cursor"], "hasNextPage": behind < len(nodes)}
        files = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "run": {"fileCount": len(nodes), "files": files}}}

    def _file(self, name: str, below: str) -> Document:
        url = f"{self._url}/upload/{quote(name)}"
        size_bytes = self._store.blob(name).stat().st_size
        return {
            "id": name, "name": name.removeprefix(below), "url": url, "directUrl": url,
            "sizeBytes": size_bytes, "mimetype": "", "updatedAt": _now(), "md5": "",
        }  # fmt: skip

    def _node(self, run: Document) -> Document:
        path = run["path"]
        entity, project, name = path.split("/")
        last = self._store.last_lines(path)
        of_project = {"id": project, "name": project, "entity": {"id": entity, "name": entity}}
        return run | {
            "id": path,
            "name": name,
            "group": run.get("groupName"),
            "config": json.dumps(run["config"]),
            "summaryMetrics": json.dumps(self._summary(path)),
            "systemMetrics": "{}",
            "historyLineCount": self._store.line_count(path),
            "historyKeys": {
                "lastStep": json.loads(last[0])["_step"] if last else -1, "keys": {}, "sets": []
            },
            "project": of_project,
            "projectId": "1",
            "sweepName": None,
            "user": {"name": "tester", "username": "tester"},
        }  # fmt: skip


def state_of(exit_code: int) -> str:
    """How W&B calls a run that ended with this code."""
    return _STATES.get(exit_code, "failed")


def _new_run(path: str) -> Document:
    empty = {"displayName": None, "notes": None, "tags": [], "groupName": None, "jobType": None}
    return empty | {
        "path": path, "name": path.rpartition("/")[2], "config": {}, "state": "running",
        "exitcode": None, "createdAt": _now(), "heartbeatAt": _now(), "description": None,
        "commit": None, "readOnly": False,
    }  # fmt: skip


def _step_of(line: str) -> int:
    """The step of a row, without reading all of it."""
    found = _STEP.search(line)
    assert found, line
    return int(found[1])


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_VIEWER = {
    "id": "viewer", "entity": ENTITY, "username": "tester", "name": "tester", "email": "",
    "flags": "{}", "admin": False, "teams": {"edges": [{"node": {"name": ENTITY}}]},
    "apiKeys": {"edges": []},
}  # fmt: skip
