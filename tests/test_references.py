"""Where a run's files stand, as URIs that W&B can refer to."""

import pytest

from opusclip_mlops.folder import Identity
from opusclip_mlops.redaction import redacted
from opusclip_mlops.references import checkpoint_files, physical, uri_of


@pytest.mark.parametrize(
    ("base", "path", "uri"),
    [
        ("/a b/c", "d#e.txt", "file:///a%20b/c/d%23e.txt"),
        ("file:///a/", "100%.txt", "file:///a/100%25.txt"),
        ("s3://bucket/x", "a b/c?d#e.txt", "s3://bucket/x/a b/c%3Fd%23e.txt"),
        ("mlflow-artifacts:/1/r/artifacts", "a.bin", "mlflow-artifacts:/1/r/artifacts/a.bin"),
    ],
)
def test_a_file_has_one_uri(base: str, path: str, uri: str) -> None:
    """Local paths are quoted; object stores take keys as they are, but for ? and #."""
    assert uri_of(base, path) == uri


def test_a_bare_path_is_a_file() -> None:
    """MLflow gives local artifact folders without a scheme."""
    assert physical("/mlruns/1") == "file:///mlruns/1"
    assert physical("s3://b/1") == "s3://b/1"


def test_a_checkpoint_says_what_it_is() -> None:
    """Its files, their sizes, its step, and whether it is the best."""
    identity = Identity(mirror_id="m", experiment_name="e", run_id="r", artifact_uri="s3://b/r")
    about = {
        "name": "epoch-0001", "step": 7, "epoch": 1, "best": True, "metrics": {"loss": "0.5"},
        "files": {"w.bin": "0" * 64}, "sizes_bytes": {"w.bin": 3},
    }  # fmt: skip
    found = checkpoint_files(identity, about)
    assert found.name == "checkpoint-m"
    assert found.uris == {"w.bin": "s3://b/r/checkpoints/epoch-0001/w.bin"}
    assert found.aliases == ["latest", "step-7", "best"]
    assert (found.metadata["step"], found.metadata["mlflow_run_id"]) == (7, "r")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ftp://me:hunter22@host/x", "ftp://me:***@host/x"),
        (
            "see postgresql+psycopg2://u:pa/ss@db:5432/m now",
            "see postgresql+psycopg2://u:***@db:5432/m now",
        ),
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ("https://me:pw@host/x@y", "https://me:***@host/x@y"),
        ("http://host:5000/#/models/vae@prod", "http://host:5000/#/models/vae@prod"),
        ("https://s/b?sig=abc&x=1", "https://s/b?sig=***&x=1"),
        ("https://s/b?X-Amz-Signature=abc", "https://s/b?X-Amz-Signature=***"),
        ("models:/vae@champion and s3://bucket/a@b", "models:/vae@champion and s3://bucket/a@b"),
    ],
)
def test_no_credential_is_passed_on(text: str, expected: str) -> None:
    """Passwords, tokens and signatures in URIs, whatever the scheme."""
    assert redacted(text) == expected
