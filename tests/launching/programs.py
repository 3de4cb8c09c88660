"""Programs that answer what was recorded of the real ones, and keep what they were asked."""

from pathlib import Path

import pytest

SCRIPT = """\
#!/bin/bash
printf '%s\\n' "$@" >> {folder}/{name}.words
{shows}
cat <<'THE_END'
{answer}
THE_END
"""
FAULT = """\
#!/bin/bash
printf '%s\\n' "$@" >> {folder}/{name}.words
cat >&2 <<'THE_END'
{error}
THE_END
exit 1
"""


def only_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with what the programs here need themselves."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "env"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, answer: str = "", *, error: str = "", shows: str = "") -> None:
    """Put a program into a folder: it answers, or fails with an error.

    Its words are kept in `<name>.words`; what `shows` names ("environment" or "input") in
    `<name>.shown`.
    """
    folder.mkdir(exist_ok=True)
    command = {"environment": "env", "input": "cat"}.get(shows, "true")
    text = FAULT if error else SCRIPT
    shown = f"{command} > {folder}/{name}.shown" if shows else ""
    file = folder / name
    file.write_text(text.format(folder=folder, name=name, answer=answer, error=error, shows=shown))
    file.chmod(0o755)
