"""The stock MLflow UI in front of a guarded server: what people see when the gate says no."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page

from opusclip_mlops import chronicle, gated
from tests.browser import STAGES, open_mlflow
from tests.promoters import NAME, is_settled, make_model, shown
from tests.server.guarding import STRICT, guarded_server, measured

pytestmark = pytest.mark.browser

MENU = ".mlflow-stage-transition-dropdown"
CONFIRM = "[data-component-id='mlflow.model_registry.stage_transition_modal_v2.footer.ok']"


@dataclass(frozen=True)
class Served:
    """A guarded server with a model whose policy wants 30 dB, and two versions."""

    url: str
    client: MlflowClient
    bad: int
    good: int


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server, with nobody in any stage."""
    with guarded_server(Path(tmp_path_factory.mktemp("guard"))) as (url, _):
        client = MlflowClient(url)
        make_model(client, versions=0)
        gated.set_policy(NAME, STRICT, tracking_uri=url, registry_uri=url)
        yield Served(url, client, measured(client, 29.0), measured(client, 31.0))


def page_of(browser: Browser, served: Served, version: int) -> Page:
    """The page of a version, with its stages."""
    return open_mlflow(browser, f"{served.url}/#/models/{NAME}/versions/{version}", **STAGES)


def put_into(page: Page, stage: str) -> None:
    """Ask for a stage as a person does: menu, comment, confirm."""
    page.locator(MENU).click()
    page.locator(f"li[data-menu-id$='-transition-to-{stage}']").click()
    page.get_by_role("dialog").locator("textarea[name=comment]").fill("looks good")
    page.locator(CONFIRM).click()


def test_a_refusal_is_shown_with_its_numbers(browser: Browser, served: Served) -> None:
    """The page says which condition failed, and nothing is moved or recorded."""
    before = chronicle.history(NAME, client=served.client)
    page = page_of(browser, served, served.bad)
    put_into(page, "Production")
    text = page.get_by_text("may not enter Production").first
    text.wait_for()
    assert f"version {served.bad} of '{NAME}'" in text.inner_text()
    assert "val/psnr min: 29, wanted 30" in text.inner_text()
    assert shown(served.client)["Production"] == []
    assert chronicle.history(NAME, client=served.client) == before


def test_what_passes_moves_stage_and_alias_together(browser: Browser, served: Served) -> None:
    """And is recorded as decided in the UI."""
    page = page_of(browser, served, served.good)
    put_into(page, "Production")
    page.locator(MENU, has_text="Production").wait_for()
    last = chronicle.history(NAME, client=served.client)[-1]
    assert (last.version, last.to_stage, last.came_by) == (served.good, "Production", "UI")
    assert shown(served.client)["production"] == served.good
    assert is_settled(served.client)


def test_an_alias_goes_past_the_gate_too(browser: Browser, served: Served) -> None:
    """Without stages shown, the alias `production` is refused with the same text."""
    page = open_mlflow(browser, f"{served.url}/#/models/{NAME}/versions/{served.bad}")
    page.get_by_text("Aliases:").wait_for()
    page.get_by_role("button", name="Add").first.click()
    box = page.get_by_role("dialog").get_by_role("combobox")
    box.fill("production")
    box.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Save aliases").click()
    page.get_by_text("may not enter Production").first.wait_for()
    assert shown(served.client).get("production") != served.bad
