"""Facts about `opusclip_mlops.unread_output`: the command where nobody reads what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops.unread_output import dropped

VERB = """
import sys, click
from pathlib import Path
from opusclip_mlops import cli

@cli.opusclip.command()
@click.argument("how")
@click.argument("lines", type=int)
def tell(how, lines):
    from rich.console import Console
    console = Console()
    for number in range(lines):
        {"print": print, "echo": click.echo, "rich": console.print}[how](f"line {number}" * 20)
    Path("after").write_text("written")
    sys.exit(3)

cli.main(sys.argv[1:])
"""


def ended(*line: str) -> tuple[int, bytes]:
    """The exit code of the command whose reader has gone, and what it told on stderr."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", VERB, *line], stdout=write, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("how", "lines"), [("print", 1), ("print", 9999), ("rich", 9), ("echo", 9)]
)
def test_a_verb_ends_as_it_ever_does_when_nobody_reads_it(
    how: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own exit code and without a word, after all it had to do."""
    monkeypatch.chdir(tmp_path)
    assert ended("tell", how, str(lines)) == (3, b"")
    assert Path("after").read_text() == "written"


def test_help_that_nobody_reads_is_no_fault() -> None:
    """The exit code is 0; 2 where no verb was named."""
    assert ended("--help") == (0, b"")
    assert ended() == (2, b"")


def test_what_is_read_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    """And the output is that of before again."""
    before = sys.stdout
    with dropped():
        print("told")
    assert sys.stdout is before
    assert capsys.readouterr().out == "told\n"
