"""The template of nginx: nginx takes it, and every topology fills it in."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.deploy.programs import CONFIG, DEPLOY, door_values, filled_in, program

TEMPLATE = (CONFIG / "nginx.conf.template").read_text()
NEEDED = set(re.findall(r"\$\{(\w+)\}", TEMPLATE))


def test_nginx_takes_it(tmp_path: Path) -> None:
    """`nginx -t` finds nothing wrong with the file that comes of the template."""
    subprocess.run([DEPLOY / "secrets.sh", "127.0.0.1", tmp_path], check=True, capture_output=True)
    config = tmp_path / "nginx.conf"
    config.write_text(filled_in(TEMPLATE, door_values(tmp_path)))
    done = subprocess.run(
        [program("nginx"), "-t", "-c", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_compose_fills_in_all_of_it() -> None:
    """Each name of the template has a value in compose.yaml, and no value is without a use."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    given = compose["services"]["nginx"]["environment"]
    assert {name for name in given if name.startswith("OPUSCLIP_")} == NEEDED


def test_kubernetes_fills_in_all_of_it() -> None:
    """The same in the Deployment."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / "base" / "nginx.yaml").read_text())
    [deployment] = [one for one in documents if one["kind"] == "Deployment"]
    given = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {one["name"] for one in given if one["name"].startswith("OPUSCLIP_")} == NEEDED
