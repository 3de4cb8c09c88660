"""What a W&B server keeps of runs and artifacts: in one file, so that it outlives the server."""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"
"""The names under which the client streams rows, and the last value of each column."""

Document = dict[str, Any]

_TABLES = """
CREATE TABLE IF NOT EXISTS documents (kind TEXT, id TEXT, text TEXT, PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS lines
  (run TEXT, file TEXT, number INTEGER, text TEXT, PRIMARY KEY (run, file, number));
"""


class Store:
    """Runs, their streamed lines, artifacts and uploaded files, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(
            folder / "wandb.db", check_same_thread=False, isolation_level=None, timeout=30
        )
        self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; {_TABLES}")

    def close(self) -> None:
        self._database.close()

    def get(self, kind: str, name: str) -> Document | None:
        """A document, None where there is none."""
        query = "SELECT text FROM documents WHERE kind = ? AND id = ?"
        found = self._database.execute(query, (kind, name)).fetchone()
        return json.loads(found[0]) if found else None

    def put(self, kind: str, name: str, document: Document) -> Document:
        """Keep a document under a name."""
        query = (
            "INSERT INTO documents VALUES (?, ?, ?)"
            " ON CONFLICT (kind, id) DO UPDATE SET text = excluded.text"
        )
        self._database.execute(query, (kind, name, json.dumps(document)))
        return document

    def remove(self, kind: str, name: str) -> None:
        self._database.execute("DELETE FROM documents WHERE kind = ? AND id = ?", (kind, name))

    def all(self, kind: str) -> Iterator[Document]:
        """All documents of a kind, in the order in which they were first kept."""
        query = "SELECT text FROM documents WHERE kind = ? ORDER BY rowid"
        for (text,) in self._database.execute(query, (kind,)).fetchall():
            yield json.loads(text)

    def count(self, kind: str) -> int:
        query = "SELECT COUNT(*) FROM documents WHERE kind = ?"
        return int(self._database.execute(query, (kind,)).fetchone()[0])

    def write_lines(self, run: str, file: str, offset: int, lines: Sequence[str]) -> None:
        """Keep lines from `offset` on, over what stands there already."""
        rows = [(run, file, offset + at, line) for at, line in enumerate(lines)]
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?, ?, ?)", rows)

    def lines(self, run: str, file: str = HISTORY) -> list[str]:
        """The lines of a run's file, in order."""
        query = "SELECT text FROM lines WHERE run = ? AND file = ? ORDER BY number"
        return [text for (text,) in self._database.execute(query, (run, file))]

    def line_count(self, run: str, file: str = HISTORY) -> int:
        query = "SELECT COALESCE(MAX(number) + 1, 0) FROM lines WHERE run = ? AND file = ?"
        return int(self._database.execute(query, (run, file)).fetchone()[0])

    def last_lines(self, run: str, file: str = HISTORY, *, count: int = 1) -> list[str]:
        query = "SELECT text FROM lines WHERE run = ? AND file = ? ORDER BY number DESC LIMIT ?"
        return [text for (text,) in self._database.execute(query, (run, file, count))][::-1]

    def cut_lines(self, run: str, file: str = "", *, count: int = 0) -> None:
        """Keep the first `count` lines of one file, or of all."""
        query = "DELETE FROM lines WHERE run = ? AND (file = ? OR ? = '') AND number >= ?"
        self._database.execute(query, (run, file, file, count))

    def blob(self, name: str) -> Path:
        """Where the bytes of an uploaded file lie."""
        return self._blobs / hashlib.sha256(name.encode()).hexdigest()

    def blob_names(self, prefix: str) -> list[str]:
        """The uploaded files below a name."""
        found = (one["name"] for one in self.all("blob"))
        return [name for name in found if name.startswith(prefix)]

    def artifacts_of(self, collection: str) -> list[Document]:
        """The artifacts of a collection, `entity/project/name`."""
        return [one for one in self.all("artifact") if one["collection"] == collection]

    def manifest_of(self, artifact: Document) -> dict[str, Any]:
        """What an artifact says of its files, by their paths."""
        blob = self.blob(f"manifests/{artifact.get('manifest', '')}")
        return dict(json.loads(blob.read_bytes())["contents"]) if blob.is_file() else {}

    def state(self) -> dict[str, Any]:
        """All that is kept, for a test to look at."""
        return {
            "runs": {one["path"]: self._about_run(one) for one in self.all("run")},
            "artifacts": [
                one | {"contents": self.manifest_of(one)} for one in self.all("artifact")
            ],
            "alerts": list(self.all("alert")),
            "unknown": [one["operation"] for one in self.all("unknown")],
        }

    def _about_run(self, run: Document) -> Document:
        path = run["path"]
        summary = self.last_lines(path, SUMMARY) or ["{}"]
        return run | {
            "history": [json.loads(line) for line in self.lines(path)],
            "summary": json.loads(summary[0]),
            "config": {
                key: value["value"] for key, value in run["config"].items() if key != "_wandb"
            },
            "files": self.blob_names(f"runs/{path}/"),
        }
