"""What Prometheus watches: each alert fires when it should, and says what to do."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.programs import CONFIG, DEPLOY, program

RULES = [
    rule for group in yaml.safe_load((CONFIG / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]  # fmt: skip
README = (DEPLOY / "README.md").read_text()


def checked(*words: str | Path, cwd: Path) -> str:
    """What promtool says."""
    done = subprocess.run(
        [program("promtool"), *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("targets", ["targets", "targets.minio"])
def test_promtool_takes_the_configuration(tmp_path: Path, targets: str) -> None:
    """The configuration, its rules, and the addresses of both kinds of object store."""
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(CONFIG / name, tmp_path)
    shutil.copytree(CONFIG / targets, tmp_path / "targets")
    said = checked("check", "config", tmp_path / "prometheus.yml", cwd=tmp_path)
    assert "FAILED" not in said
    assert f"{len(RULES)} rules found" in said


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    """Promtool's own unit tests of the rules: outages, slowness, full disks, and all being well."""
    shutil.copy(CONFIG / "alerts.yml", tmp_path)
    cases = Path(__file__).with_name("alerts.test.yml")
    shutil.copy(cases, tmp_path)
    assert "SUCCESS" in checked("test", "rules", cases.name, cwd=tmp_path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """Its runbook is a section of the README."""
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert file == "deploy/README.md"
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_the_dashboard_shows_what_is_measured() -> None:
    """Each of its queries asks for figures that rules and tests know, from the one data source."""
    dashboard = json.loads((CONFIG / "grafana" / "opusclip.json").read_text())
    [source] = yaml.safe_load((CONFIG / "grafana" / "datasources.yml").read_text())["datasources"]
    known = json.dumps(RULES) + "opusclip_mirror_points_total SeaweedFS_s3_request_total ALERTS"
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        for target in panel["targets"]:
            for name in re.findall(r"\b(?:\w+_\w+|up|ALERTS)(?=\{|\[|\)| )", target["expr"]):
                assert name in known or name == "histogram_quantile", name
