"""The stock MLflow UI: a version's page as people see it, and what comes of what they do there."""

import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Locator, Page

from opusclip_mlops import chain, chronicle, gated, layout, video
from opusclip_mlops.decisions import Decision
from opusclip_mlops.metadata import CheckpointMetadata, StoredFile
from opusclip_mlops.version_page import VersionPage
from tests.browser import STAGES, open_mlflow
from tests.servers import BIN, mlflow_server
from tests.test_registry import FIRST, SECOND, Store
from tests.test_version_page import NASTY

pytestmark = pytest.mark.browser

KEY, STEP, MARK = "samples/generated_vs_target", 18, "abcdef12"
STEPS = f"{KEY}, step {STEP}"
STRICT = "stages: {Production: {metrics: {val/psnr: {min: 30}}}}\n"
MENU = ".mlflow-stage-transition-dropdown"
CONFIRM = "[data-component-id='mlflow.model_registry.stage_transition_modal_v2.footer.ok']"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server with a run that logged a clip, and the model `films` with two versions of it."""
    folder = tmp_path_factory.mktemp("registry")
    with mlflow_server(folder) as url:
        store = Store(folder, url)
        run_id = store.run(FIRST, SECOND)
        log_clip(store, run_id)
        for checkpoint in (FIRST, SECOND):
            store.register(run_id, name="films", checkpoint=checkpoint)
        yield store


def log_clip(store: Store, run_id: str) -> None:
    """A clip as a run keeps it: the film, and moving in the image grid."""
    frames = np.zeros((8, 64, 160, 3), np.uint8)
    for number in range(8):
        frames[number, :, number * 20 : number * 20 + 20] = (255, 128, 0)
    film = store.folder / f"step_{STEP:08d}-{MARK}.mp4"
    video.write_mp4(frames, film, fps=8)
    store.client.log_artifact(run_id, str(film), layout.clip_folder(KEY))
    stem = layout.image_stem(KEY, STEP, 1_700_000_000_000, MARK)
    moving = store.folder / f"{stem}+compressed.webp"
    video.write_webp(frames, moving, fps=8)
    store.client.log_artifact(run_id, str(moving), layout.IMAGES)


def model(registry: Store, name: str) -> str:
    """Another model of copies of the two versions; returns its name."""
    for number in (1, 2):
        registry.client.copy_model_version(f"models:/films/{number}", name)
    return name


def version_page(browser: Browser, registry: Store, name: str, version: int, **seen: str) -> Page:
    """The page of a version."""
    return open_mlflow(browser, f"{registry.uri}/#/models/{name}/versions/{version}", **seen)


def put_into(page: Page, stage: str) -> None:
    """Move the version of a page as a person does: menu, comment, confirm."""
    page.locator(MENU).click()
    page.locator(f"li[data-menu-id$='-transition-to-{stage}']").click()
    page.get_by_role("dialog").locator("textarea[name=comment]").fill("looks good")
    page.locator(CONFIRM).click()
    page.locator(MENU, has_text=stage).wait_for()


def give_alias(page: Page, alias: str) -> None:
    """Name the version of a page as a person does."""
    page.get_by_text("Aliases:").wait_for()
    page.get_by_role("button", name="Add").first.click()
    box = page.get_by_role("dialog").get_by_role("combobox")
    box.fill(alias)
    box.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Save aliases").click()
    page.get_by_role("dialog").wait_for(state="hidden")


def look(registry: Store, name: str) -> list[Decision]:
    """What one look of the watcher makes."""
    seen: list[gated.Sighting] = []
    uri = registry.uri
    gated.watch([name], rounds=1, show=seen.append, tracking_uri=uri, registry_uri=uri)
    assert [one.problem for one in seen if one.problem] == []
    return [one.decision for one in seen if one.decision]


def standing(client: MlflowClient, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Each version's stage, and each alias's version."""
    found = client.search_model_versions(f"name = '{name}'")
    stages = {str(one.version): str(one.current_stage) for one in found}
    return stages, {key: str(one) for key, one in client.get_registered_model(name).aliases.items()}


def description(page: Page) -> Locator:
    """The description as it is shown."""
    return page.get_by_test_id("note-editor-preview-content")


def test_a_versions_page_reads_well(browser: Browser, registry: Store) -> None:
    """A table of metrics, facts, tags, and a picture that the browser can show."""
    page = version_page(browser, registry, "films", 1)
    text = description(page)
    text.locator("table").wait_for()
    rows = [row.inner_text().split() for row in text.locator("tbody tr").all()]
    assert rows == [["val/loss", "nan"], ["val/psnr", "24.1235"]]
    assert text.locator("p").first.inner_text() == "Scaler, epoch 1, step 20, of run kite"
    assert (
        "Code at commit 0123456789ab, with uncommitted changes" in text.locator("ul").inner_text()
    )
    picture = text.locator("img").element_handle()
    page.wait_for_function("one => one.complete && one.naturalWidth > 0", arg=picture)
    assert page.evaluate("one => one.naturalWidth", picture) == 160
    tags = page.get_by_role("cell", name="val/psnr", exact=True).last
    tags.wait_for()
    assert page.get_by_text("24.12", exact=True).is_visible()


def test_the_pages_links_lead_to_the_run_and_its_clip(browser: Browser, registry: Store) -> None:
    """The run's page opens, and the film in its artifacts plays."""
    page = version_page(browser, registry, "films", 1)
    text = description(page)
    text.get_by_role("link", name="kite").wait_for()
    with page.expect_popup() as opened:
        text.get_by_role("link", name="kite").click()
    opened.value.get_by_role("heading", name="kite").wait_for()
    with page.expect_popup() as opened:
        text.get_by_role("link", name=STEPS).click()
    film = opened.value.locator("video")
    film.wait_for()
    opened.value.wait_for_function("document.querySelector('video').videoWidth == 160")


def test_names_are_shown_as_they_are(browser: Browser, registry: Store) -> None:
    """Whatever a metric, a class or a run is called: no link, no markup, no second column."""
    scores = dict.fromkeys(NASTY, 1.0)
    about = CheckpointMetadata(
        name=FIRST, step=1, epoch=1, metrics=scores, model={"class": "1. a"}, parent="- a"
    )
    run_name = "[a](http://evil.example)"
    made = VersionPage(
        metadata=about,
        weights=StoredFile("f" * 64, 1),
        run_id="r",
        run_name=run_name,
        experiment_id="1",
    )
    name = model(registry, "names")
    registry.client.update_model_version(name, "1", made.description())
    text = description(version_page(browser, registry, name, 1))
    text.locator("table").wait_for()
    assert text.locator("tbody td:first-child").all_inner_texts() == sorted(NASTY)
    assert text.locator("td *").count() == 0
    first = text.locator("p").first
    assert first.inner_text() == f"1. a, epoch 1, step 1, of run {run_name}"
    assert first.get_by_role("link").all_inner_texts() == [run_name]


def test_a_promotion_by_hand_is_recorded(browser: Browser, registry: Store) -> None:
    """Staging, then Production in the UI: each time the alias follows, and the history tells."""
    name = model(registry, "by-hand")
    gated.promote(name, 2, to="Production", tracking_uri=registry.uri, registry_uri=registry.uri)
    page = version_page(browser, registry, name, 1, **STAGES)
    moves = (("Staging", "None", None), ("Production", "Staging", 2))
    for number, (stage, before, previous) in enumerate(moves, 2):
        put_into(page, stage)
        [made] = look(registry, name)
        assert (made.number, made.kind, made.came_by, made.actor) == (
            number, "external", "watch", "unknown",
        )  # fmt: skip
        assert (made.version, made.from_stage, made.to_stage) == (1, before, stage)
        assert (made.previous_holder, made.reason) == (
            previous, f"version 1 was put into {stage} by hand",
        )  # fmt: skip
        assert standing(registry.client, name)[1][stage.lower()] == "1"
    assert standing(registry.client, name) == (
        {"1": "Production", "2": "Archived"},
        {"production": "1"},
    )
    assert chronicle.verify_history(name, client=registry.client) == []


def test_a_promotion_by_hand_that_fails_its_gate_is_put_back(
    browser: Browser, registry: Store
) -> None:
    """The command sees it: the holder before is in place again, and the history says why."""
    name, places = model(registry, "put-back"), {"tracking_uri": registry.uri}
    gated.promote(name, 1, to="Production", **places)
    gated.set_policy(name, STRICT, **places)
    put_into(version_page(browser, registry, name, 2, **STAGES), "Production")
    assert standing(registry.client, name)[0]["2"] == "Production"
    line = [BIN / "opusclip", "watch", name, "--once", "--json", "--tracking-uri", registry.uri]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "put into Production by hand, and put back" in done.stdout
    assert standing(registry.client, name) == (
        {"1": "Production", "2": "None"},
        {"production": "1"},
    )
    records = chronicle.history(name, client=registry.client)
    verdict = chronicle.verdict_of(records[-1], client=registry.client)
    assert (records[-1].kind, records[-1].version, chain.holder(records, "Production")) == (
        "repair", 2, 1,
    )  # fmt: skip
    [condition] = (verdict or {})["conditions"]
    assert (condition["measured"], condition["wanted"]) == (pytest.approx(24.123456789), 30)
    assert chronicle.verify_history(name, client=registry.client) == []


def test_an_alias_given_by_hand_is_judged_as_a_stage_is(browser: Browser, registry: Store) -> None:
    """Without a policy the stage follows the alias; with one that it fails, the alias goes back."""
    name, places = model(registry, "alias"), {"tracking_uri": registry.uri}
    gated.promote(name, 1, to="Production", **places)
    give_alias(version_page(browser, registry, name, 2), "production")
    [made] = look(registry, name)
    assert (made.kind, made.reason) == ("external", "alias production was set to version 2 by hand")
    assert standing(registry.client, name)[0] == {"1": "Archived", "2": "Production"}
    gated.set_policy(name, STRICT, **places)
    give_alias(version_page(browser, registry, name, 1), "production")
    [made] = look(registry, name)
    assert made.kind == "repair"
    assert standing(registry.client, name) == (
        {"1": "Archived", "2": "Production"},
        {"production": "2"},
    )


def test_the_holder_of_a_stage_may_be_taken_out_and_deleted(
    browser: Browser, registry: Store
) -> None:
    """The UI deletes no version in Production, but one that was archived there; both are told."""
    name = model(registry, "deleted")
    gated.promote(name, 1, to="Production", tracking_uri=registry.uri)
    page = version_page(browser, registry, name, 1, **STAGES)
    page.locator(MENU, has_text="Production").wait_for()
    page.get_by_test_id("overflow-menu-trigger").click()
    delete = page.get_by_role("menuitem", name="Delete")
    assert delete.get_attribute("aria-disabled") == "true"
    page.keyboard.press("Escape")
    put_into(page, "Archived")
    [made] = look(registry, name)
    assert (made.from_stage, made.to_stage) == ("Production", "Archived")
    assert standing(registry.client, name)[1] == {}
    page.get_by_test_id("overflow-menu-trigger").click()
    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    assert look(registry, name) == []
    assert standing(registry.client, name) == ({"2": "None"}, {})
    assert chronicle.verify_history(name, client=registry.client) == []


def test_a_description_edited_by_hand_is_let_be(browser: Browser, registry: Store) -> None:
    """What people write on a page stays theirs: the watcher makes nothing of it."""
    name = model(registry, "edited")
    gated.promote(name, 1, to="Staging", tracking_uri=registry.uri)
    page = version_page(browser, registry, name, 1)
    page.get_by_text("Edit", exact=True).click()
    page.locator("textarea").first.fill("the one for the demo")
    page.get_by_role("button", name="Save").click()
    description(page).get_by_text("the one for the demo").wait_for()
    assert look(registry, name) == []
    assert registry.client.get_model_version(name, "1").description == "the one for the demo"
