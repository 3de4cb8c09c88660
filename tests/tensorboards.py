"""Real TensorBoards on free local ports, and what their pages are told of a run."""

import contextlib
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import BIN, free_port, running

_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class TensorBoard:
    """A TensorBoard that is running."""

    url: str

    def asked(self, path: str, **query: str) -> Any:
        """What one of its pages is answered."""
        asked = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        with _LOCAL.open(f"{self.url}/data/{path}?{asked}", timeout=30) as answer:
            return json.loads(answer.read())

    def tags(self, plugin: str, run: str) -> set[str]:
        """The tags of a run in a dashboard."""
        return set(self.asked(f"plugin/{plugin}/tags").get(run, {}))

    def scalars(self, run: str, key: str) -> list[tuple[int, int, str]]:
        """Step, milliseconds and value of each point of a chart."""
        points = self.asked("plugin/scalars/scalars", run=run, tag=key)
        return [(step, round(wall_s * 1000), str(value)) for wall_s, step, value in points]

    def all_scalars(self, run: str) -> dict[str, list[tuple[int, int, str]]]:
        """Every chart of a run."""
        return {key: self.scalars(run, key) for key in sorted(self.tags("scalars", run))}

    def texts(self, run: str, tag: str) -> list[tuple[int, str]]:
        """Step and HTML of each text."""
        return [(t["step"], t["text"]) for t in self.asked("plugin/text/text", run=run, tag=tag)]

    def picture_steps(self, run: str, tag: str) -> list[int]:
        """The steps at which there is a picture."""
        found = self.asked("plugin/images/images", run=run, tag=tag, sample="0")
        return [one["step"] for one in found]


@contextlib.contextmanager
def tensorboard(folder: Path, *, fast: bool) -> Iterator[TensorBoard]:
    """Run TensorBoard on a folder; `fast` is its default loader, the other is in Python."""
    port = free_port()
    argv = [
        *(BIN / "tensorboard", "--logdir", folder, "--port", str(port), "--host", "127.0.0.1"),
        *("--load_fast", "true" if fast else "false", "--reload_interval", "1"),
        *("--samples_per_plugin", "scalars=1000000,images=100000,text=100000"),
    ]
    url = f"http://127.0.0.1:{port}"
    with running(argv, {}, f"{url}/data/environment"):
        yield TensorBoard(url)
