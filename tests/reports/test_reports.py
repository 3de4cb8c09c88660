"""Facts about `opusclip_mlops.reports`: pages about runs, and what is put into MLflow of them."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import reports
from opusclip_mlops.alerts import past
from opusclip_mlops.errors import ConfigError, DataError, RegistryError
from opusclip_mlops.listing import Part
from opusclip_mlops.lookout import SelectionError
from opusclip_mlops.records import Record
from opusclip_mlops.reports import report
from tests.journeys import store
from tests.panelled import panelled_run
from tests.reports.reported_runs import AGAIN_TO, MODEL, SPIKE, STEPS, Site

Bare = Callable[..., str]


def titles(text: str) -> list[str]:
    """The headings of a page's sections."""
    return re.findall(r"<h2>(.*?)</h2>", text)


def section(text: str, name: str) -> str:
    """One section of a page."""
    return text.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_a_run_has_a_section_for_all_there_is_of_it(site: Site) -> None:
    """In the order people ask for it; nothing was unreadable."""
    made, text = site.made("rich")
    assert made.unread == ()
    assert titles(text) == [
        "Summary", "How an earlier part died", "Curves", "Samples", "Clips and pictures",
        "Tables and insights", "Checkpoints", "Models and registry", "Alerts", "Params and tags",
        "Data", "Environment", "Other files",
    ]  # fmt: skip
    assert made.size_bytes == made.file.stat().st_size
    assert made.file.stat().st_mode & 0o777 == 0o600


def test_what_a_run_has_nothing_of_has_no_section(site: Site) -> None:
    """A run with metrics alone has a short report."""
    _, text = site.made("plain")
    assert titles(text) == ["Summary", "Curves", "Environment"]


def test_the_summary_says_how_it_ended_and_where_it_stands(site: Site) -> None:
    """The best value too, by which way the metric is better."""
    _, text = site.made("rich")
    summary = section(text, "summary")
    assert "FAILED" in summary
    assert "ValueError: the loss is &lt;b&gt;NaN&lt;/b&gt;" in summary
    assert f"<td>val/psnr</td><td>22.5</td><td>7</td><td>{SPIKE}</td><td>6</td>" in summary
    assert "loss-nan" in summary


def test_the_line_is_as_it_is_now_and_the_branch_that_was_left_is_faded(site: Site) -> None:
    """A point behind the checkpoint that was logged before it went on counts no more."""
    _, text = site.made("rich")
    assert f"<td>train/loss</td><td>0.5</td><td>{AGAIN_TO}</td>" in section(text, "summary")
    chart = section(text, "curves").partition('data-key="train/loss"')[2].partition("</figure>")[0]
    assert re.findall(r'<path class="line c\d( faded)?"', chart) == [" faded", ""]
    assert f'"x":[{",".join(map(str, range(AGAIN_TO - 4, STEPS)))}]' in chart
    assert "went on from checkpoint c19 after step 19" in section(text, "curves")


def test_samples_and_the_newest_clips_are_embedded(site: Site) -> None:
    """Four cells of the last sampling, the newest of the walks, and the picture."""
    _, text = site.made("rich")
    assert section(text, "samples").count("<video") == 4
    assert "psnr 31.25" in section(text, "samples")
    media = section(text, "media")
    assert media.count("<video") == 1
    assert "films/walk, step 9, a &lt;i&gt;walk&lt;/i&gt;" in media
    assert media.count("<img") == 1
    [clip] = re.findall(r'src="data:video/mp4;base64,([^"]+)"', media)
    assert base64.b64decode(clip)[4:8] == b"ftyp"


def test_decisions_are_told_with_their_chain(site: Site) -> None:
    """Who moved which version, why, and that nothing of the history was changed."""
    _, text = site.made("rich")
    told = section(text, "registry")
    assert "promotion of version 2: None to Production, in place of 1" in told
    assert "sharper | &lt;b&gt;kites&lt;/b&gt;" in told
    assert "The chain of its 2 decisions was verified: it is whole." in told


def test_a_model_whose_files_are_away_hides_nothing_else(bare: Bare, tmp_path: Path) -> None:
    """Its version is told of without them; so are the run's own files."""
    client, run_id = MlflowClient(store(tmp_path)), bare("one", {"loss": [1.0]})
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, source="s3://no such bucket/x", run_id=run_id)
    client.log_table(run_id, {"clip": ["kite.mp4"]}, "worst.json")
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert [one.part for one in made.unread] == ["logged models"]
    assert "s3://no such bucket/x" in section(text, "registry")
    assert "<td>kite.mp4</td>" in section(text, "insights")


def test_where_the_time_went_is_a_section(bare: Bare, tmp_path: Path) -> None:
    """Of a run whose loop was timed; its own curves of that are folded."""
    timed = {"interval/seconds": 10.0, "interval/steps": 10.0}
    spent = {f"loop/data/{name}": value for name, value in (("count", 10.0), ("self_ms", 8000.0))}
    values = {f"profiling/{key}": [value] for key, value in {**timed, **spent}.items()}
    run_id = bare("timed", {**values, "train/loss": [1.0]})
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert "80.0 % of the time the loop waits for data (from 20 %)" in section(text, "bottlenecks")
    assert "- 80.0 % of the time the loop waits for data" in made.markdown
    assert "<td>profiling/interval/steps</td>" in section(text, "curves")


def test_it_is_logged_and_takes_the_place_of_the_one_before(bare: Bare, tmp_path: Path) -> None:
    """Two files in the run, the same two after the second time, as they are now."""
    run_id, client = bare("one", {"loss": [1.0]}), MlflowClient(store(tmp_path))
    for value in (1.0, 0.25):
        client.log_metric(run_id, "loss", value, step=int(4 / value))
        made = report([run_id], tracking_uri=store(tmp_path))
    paths = ["reports/report.html", "reports/report.md"]
    assert [one.path for one in client.list_artifacts(run_id, "reports")] == paths
    assert made.logged == tuple(f"{run_id}/{path}" for path in paths)
    here = client.download_artifacts(run_id, paths[0], str(tmp_path / "home"))
    assert Path(here).read_bytes() == made.file.read_bytes()
    assert "<td>0.25</td><td>16</td>" in Path(here).read_text()


def test_it_need_not_be_logged(bare: Bare, tmp_path: Path) -> None:
    """Then MLflow is read and not written."""
    run_id = bare("one", {"loss": [1.0]})
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    assert made.logged == ()
    assert made.file == Path(f"report-{run_id[:8]}.html")
    assert MlflowClient(store(tmp_path)).list_artifacts(run_id) == []


def test_several_runs_are_compared_with_the_first(bare: Bare, tmp_path: Path) -> None:
    """What differs, one chart for a metric of both, and each run's own part."""
    first = bare("first", {"val/loss": [1.0, 0.5]}, tags={"team": "a"})
    second = bare("second", {"val/loss": [1.0, 0.25]}, tags={"team": "b"})
    made = report(["first", "second"], tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert titles(text) == [
        "Runs", "Differences", "Metrics", "Curves", "Run first", "Run second"
    ]  # fmt: skip
    assert "-0.25 (-50&#160;%) better" in section(text, "metrics")
    assert "<h3>Summary</h3>" in section(text, "run-2")
    [page, words] = made.logged
    assert re.fullmatch(rf"{first}/reports/runs-[0-9a-f]{{8}}\.html", page)
    assert words == page.replace(".html", ".md")
    again = report([first, second], tracking_uri=store(tmp_path), log_to="second")
    assert again.logged[0] == page.replace(first, second)


def test_clips_side_by_side_are_the_last_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit is named in its place, and at the head of the page."""
    for name in ("first", "second"):
        panelled_run(tmp_path, (0,), run=name)
    uri = store(tmp_path)
    whole = report(["first", "second"], logs=False, tracking_uri=uri)
    assert whole.notes == ()
    clips = re.findall(r'src="data:video/mp4;base64,([^"]+)"', whole.file.read_text())
    assert len(clips) == 16
    room = sum(len(base64.b64decode(one)) for one in clips[:8])
    monkeypatch.setattr(reports, "MOST_CLIP_BYTES", room)
    made = report(["first", "second"], logs=False, tracking_uri=uri)
    text = made.file.read_text()
    assert section(text, "samples").count("<video") == 8
    assert section(text, "run-1").count("<video") == 0
    assert f"opusclip wall {made.run_ids[0]} --panel kites-" in section(text, "run-1")
    [note] = made.notes
    assert note.startswith("8 clips are left out")
    assert note in text


def test_a_run_is_put_beside_its_parent(bare: Bare, tmp_path: Path) -> None:
    """What changed, and the difference of its main metrics in the short report."""
    parent = bare("parent", {"val/loss": [0.5]})
    child = bare("child", {"val/loss": [0.25]}, tags={"mlflow.parentRunId": parent})
    made = report([child], logs=False, tracking_uri=store(tmp_path))
    assert "Beside parent" in titles(made.file.read_text())
    assert "| val/loss | 0.25 | 0 | 0.25 | 0 | -0.25 (-50 %) better |" in made.markdown


def test_a_store_of_files_that_is_away_is_named_and_the_rest_is_told(
    bare: Bare, tmp_path: Path
) -> None:
    """Curves, params and tags are in the database; why the rest is missing is said."""
    client = MlflowClient(store(tmp_path))
    client.create_experiment("away", artifact_location="odd://nowhere")
    run_id = bare("one", {"loss": [1.0, 0.5]}, experiment="away", tags={"team": "kites"})
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert {"files", "samples"} <= {one.part for one in made.unread}
    assert "Not read: files: " in section(text, "summary")
    assert '<figure class="chart" data-key="loss">' in text
    assert "kites" in section(text, "params")
    tried = report([run_id], tracking_uri=store(tmp_path))
    assert tried.not_logged.startswith("not logged, where it could replace a better one: ")
    assert (tried.logged, tried.markdown) == ((), made.markdown)


def test_a_reader_that_may_not_ask_is_told_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What refuses this user is a part that is not there, not the end of the report."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reports.reading, "alerts_in", refused)
    assert past.alerts_in is not refused
    made, text = site.made("rich")
    assert [(one.run, one.part) for one in made.unread] == [("rich", "alerts")]
    assert "Permission denied" in section(text, "summary")


def test_a_long_curve_is_thinned_and_keeps_its_spike(bare: Bare, tmp_path: Path) -> None:
    """One point of ten thousand is still drawn, and it is said how many are not."""
    values = [0.0] * 10_000
    values[7_777] = SPIKE
    run_id = bare("long", {"val/loss": values[:1000]})
    client = MlflowClient(store(tmp_path))
    for begin in range(1000, 10_000, 1000):
        _log(client, run_id, values[begin : begin + 1000], begin)
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert "of 10,000 points shown, every low and high kept" in text
    assert str(SPIKE) in section(text, "curves")


def _log(client: MlflowClient, run_id: str, values: list[float], begin: int) -> None:
    from mlflow.entities import Metric

    points = [Metric("val/loss", one, begin + at, begin + at) for at, one in enumerate(values)]
    client.log_batch(run_id, metrics=points)


def test_what_a_run_says_is_text_and_no_secret(bare: Bare, tmp_path: Path) -> None:
    """Names, tags and keys that are markup do nothing, and a password is not repeated."""
    nasty = '<img src=x onerror="alert(1)">'
    client = MlflowClient(store(tmp_path))
    run_id = bare(nasty, {"loss": [1.0]}, tags={"where": "https://me:hunter2@host/x", nasty: nasty})
    client.log_param(run_id, "cell", "a | `b` [c](https://d)")
    made = report([run_id], logs=False, tracking_uri=store(tmp_path))
    text = made.file.read_text()
    assert "<img" not in text
    assert "hunter2" not in text + made.markdown
    assert "<img" not in made.markdown


@pytest.mark.parametrize(
    ("runs", "options", "error", "said"),
    [
        ((), {}, ConfigError, "name runs, or an --experiment, and not both"),
        (("plain",), {"experiment": "films"}, ConfigError, "and not both"),
        (("nobody",), {}, RegistryError, "no run in MLflow is called 'nobody'"),
        ((), {"experiment": "nothing"}, SelectionError, "no experiment is called 'nothing'"),
        (("plain",), {"file": Path()}, ConfigError, "cannot be written: it is there and is no"),
        (("plain",), {"file": Path("away/a.html")}, ConfigError, "its folder is not there"),
        (("plain",), {"metrics": ["none/*"]}, DataError, "has no metric called none/\\*"),
        (("plain",), {"logs": True, "log_to": "nobody"}, RegistryError, "'nobody'"),
    ],
)
def test_what_cannot_be_reported(
    site: Site,
    runs: tuple[str, ...],
    options: dict[str, object],
    error: type[Exception],
    said: str,
) -> None:
    """Wrong use is told before anything is read."""
    with pytest.raises(error, match=said):
        site.made(*runs, **options)


def test_the_short_report_of_a_run_has_its_findings_and_models(site: Site) -> None:
    """For a pull request: what ended it, what was raised, what was promoted, how to see more."""
    made, _ = site.made("rich")
    assert made.markdown.startswith("## rich: FAILED\n")
    assert "- alert loss-nan at step 7: train/loss is NaN" in made.markdown
    assert f"- promotion of {MODEL} version 2 to Production" in made.markdown
    assert f"opusclip report {site.rich} --tracking-uri {site.uri}" in made.markdown


def test_of_several_runs_what_was_not_read_stands_first(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the runs, which are folded, and in the short report; the comparison is named too."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    first, second = (bare(name, {"loss": [1.0]}) for name in ("first", "second"))
    monkeypatch.setattr(reports, "laid_beside", refused)
    monkeypatch.setattr(reports.reading, "panel_titles", refused)
    made = report([first, second], logs=False, tracking_uri=store(tmp_path))
    said = ["comparison", "first: samples", "second: samples"]
    lines = [f"{one}: [Errno 13] Permission denied" for one in said]
    assert [one.line for one in made.unread] == lines
    text = made.file.read_text()
    assert titles(text)[0] == "Not read"
    assert [section(text, "not-read").count(f"Not read: {one}:") for one in said] == [1, 1, 1]
    assert "### Not read\n\n- comparison: " in made.markdown


def test_a_pattern_draws_less_and_hides_nothing(bare: Bare, tmp_path: Path) -> None:
    """Summary, last step and findings are of all metrics; one that nobody has is refused."""
    run_id = bare("one", {"val/loss": [1.0, 0.5], "train/loss": [1.0, 0.5, float("nan")]})
    bare("two", {"val/loss": [1.0]})
    uri = store(tmp_path)
    made = report([run_id], metrics=["val/*"], logs=False, tracking_uri=uri)
    text = made.file.read_text()
    assert re.findall('data-key="(.*?)"', section(text, "curves")) == ["val/loss"]
    summary = section(text, "summary")
    assert "<td>train/loss</td><td>0.5, then NaN or infinite</td><td>1</td>" in summary
    assert re.search(r"last step</\w+>\s*<\w+>2<", summary)
    assert "- train/loss: 1 NaN or infinite, the last point among them" in made.markdown
    with pytest.raises(DataError, match="no run has a metric called none/"):
        report(["one", "two"], metrics=["none/*"], tracking_uri=uri)


def test_clips_that_have_no_room_are_not_fetched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their place says how long they are, and what fetches them; no folder is left behind."""
    asked: list[str] = []
    fetch = reports.reading.fetch

    def noted(client: MlflowClient, run_id: str, part: Part, folder: Path) -> Record:
        asked.append(part.artifact_path)
        assert folder.is_dir()
        folders.add(folder)
        return fetch(client, run_id, part, folder)

    folders: set[Path] = set()
    monkeypatch.setattr(reports.reading, "fetch", noted)
    monkeypatch.setattr(reports, "MOST_CLIP_BYTES", 10)
    made, text = site.made("rich")
    assert [one for one in asked if one.startswith(("media/", "images/"))] == []
    assert not any(one.exists() for one in folders)
    assert len(folders) == 1
    media = section(text, "media")
    assert media.count(f"mlflow artifacts download --run-id {site.rich} --artifact-path ") == 2
    assert re.search(r"left out, [\d.]+ (KiB|B|bytes)", media)
    assert f"--steps last --tracking-uri {site.uri}" in section(text, "samples")
    assert made.notes[0].startswith("6 clips are left out")


def test_a_poor_report_takes_no_better_ones_place(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away for a moment costs no report that is there; that is said."""
    uri, run_id = store(tmp_path), bare("one", {"loss": [1.0, 0.5]})
    report([run_id], tracking_uri=uri)

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("the server is away")

    monkeypatch.setattr(reports.reading, "read_artifacts", away)
    made = report([run_id], tracking_uri=uri)
    assert (made.logged, [one.part for one in made.unread]) == ((), ["files"])
    assert made.not_logged.startswith("not logged, where it could replace a better one: not read: ")
    here = MlflowClient(uri).download_artifacts(run_id, "reports/report.md", str(tmp_path))
    assert "Not read" not in Path(here).read_text()


def test_what_no_section_shows_is_listed(bare: Bare, tmp_path: Path) -> None:
    """Files by name and length, but not the reports themselves; and nothing is told twice."""
    uri, client = store(tmp_path), MlflowClient(store(tmp_path))
    tags = {"opusclip.mirrors": "[1]", "opusclip.host": "h1", "opusclip.job": "j7"}
    run_id = bare("one", {"loss": [1.0]}, tags=tags)
    client.log_text(run_id, "12345", "weird/<i>doc.pdf")
    for _ in range(2):
        text = report([run_id], tracking_uri=uri).file.read_text()
    found = section(text, "files")
    assert re.findall(r"<td[^>]*>(.*?)</td>", found) == ["weird/&lt;i&gt;doc.pdf", "5 bytes"]
    environment = section(text, "environment")
    assert environment.count("h1") == 1
    assert "j7" in environment
    assert "mirrors" not in environment
    assert run_id not in environment.replace(f"{run_id}/artifacts", "")
