"""Facts about `opusclip_mlops.written`: a YAML file as it is written, or the line at fault."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.written import MOST_BYTES, PolicyError, read_yaml

REFUSED = {
    "empty": ("", "f:1: the file is empty"),
    "a comment": ("# x\n\n", "f:1: the file is empty"),
    "a list": ("- a\n", "f:1: the file must be a mapping, not a list"),
    "a word": ("kite\n", "f:1: the file must be a mapping, not 'kite'"),
    "twice": ("a: 1\nb: 2\na: 3\n", "f:3: 'a' is given twice, first in line 1"),
    "a tab": ("a:\n\tb: 1\n", "f:2: a tab: YAML is indented with spaces"),
    "an anchor": ("a: 1\nb: &x [1]\n", "f:2: anchors and aliases"),
    "an alias": ("a: *x\n", "f:1: anchors and aliases"),
    "an object": ("a: !!python/object/apply:os.system ['true']\n", "f:1: .* without a tag"),
    "a tag": ("a: !!str 1\n", "f:1: .* without a tag"),
    "a local tag": ("a: !kite 1\n", "f:1: '!kite' is not taken"),
    "two documents": ("a: 1\n---\nb: 2\n", "f:2: a second document"),
    "a list for a key": ("? [a]\n: b\n", "f:1: a key must be a word"),
    "no key": ("a: 1\n'': 2\n", "f:2: a key must be a word"),
    "deep": ("a: " + "[" * 50_000, "f:1: it is more than 16 levels deep"),
    "long": ("a" * 1_000_000, f"f:1: the file has more than {MOST_BYTES} bytes"),
    "long in bytes": ("é" * (MOST_BYTES // 2 + 1), "f:1: the file has more than"),
    "not closed": ("a: [1,\n", "f:2: it is no YAML: expected the node content"),
    "not quoted": ("a: 1\nb: 'x\n", "f:3: it is no YAML: found unexpected end of stream"),
    "a zero": ("a: 1\nb: \0\n", "f:2: a character that YAML forbids"),
    "no such character": ('a: 1\nb: "\\UFFFFFFFF"\n', "f:2: an escape that is no character"),
    "half a character": ("a: \ud800\n", "f:1: a character that YAML forbids"),
    "another YAML": ("%YAML 9.0\n---\na: 1\n", "f:1: it is no YAML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_file_is_told_with_its_line(case: str) -> None:
    """One line that begins with file and line."""
    text, message = REFUSED[case]
    with pytest.raises(PolicyError, match=message) as refused:
        read_yaml(text, source="f").entries()
    assert "\n" not in str(refused.value)


def test_aliases_that_stand_for_millions_are_refused_at_the_first() -> None:
    """A file of ten lines that would be a thousand million values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(PolicyError, match="f:1: anchors and aliases"):
        read_yaml("\n".join(lines), source="f")


def test_a_credential_in_a_file_is_not_in_its_error() -> None:
    """An error may be logged."""
    text = "stages: http://anna:secret@example.org\n"
    with pytest.raises(PolicyError) as refused:
        read_yaml(text, source="f").entries()["stages"].entries()
    assert "secret" not in str(refused.value)


NUMBERS = {
    "24": 24.0,
    "-0.5": -0.5,
    ".5": 0.5,
    "1e-3": 1e-3,
    "2.5E2": 250.0,
    "+7": 7.0,
    "0": 0.0,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_as_people_write_it(text: str) -> None:
    """Also 1e-3, which YAML itself calls a text."""
    assert read_yaml(f"a: {text}", source="f").entries()["a"].number() == NUMBERS[text]


NOT_NUMBERS = (
    "high", "'24'", '"24"', ".nan", "nan", ".inf", "-.inf", "1e999", "0x1F", "010", "1:30", "true",
    "1_000", "", "~", "[1]", "{a: 1}", "1 2", "٣", "|\n  24", "1e", "--1",
)  # fmt: skip


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_only_looks_like_a_number_is_none(text: str) -> None:
    """Quoted, not finite, octal, sexagesimal, a truth, nothing."""
    with pytest.raises(PolicyError, match=r"^f:1: a(:| must be) .*number"):
        read_yaml(f"a: {text}", source="f").entries()["a"].number()


@given(st.text(max_size=200))
def test_any_text_at_all_is_a_file_or_one_error(text: str) -> None:
    """No other error comes of it, however odd the text is."""
    said = "f:1: nothing"
    try:
        read_yaml(text, source="f").entries()
    except PolicyError as error:
        said = str(error)
    assert re.match(r"f:\d+: .", said)


@given(st.text(alphabet="ab:{}[]&*!|>-'\"#%@,? \n\t", max_size=60))
def test_what_is_read_is_what_yaml_reads(text: str) -> None:
    """Nothing is taken that a YAML reader refuses, and keys are the same."""
    try:
        mine = read_yaml(text, source="f").entries()
    except PolicyError:
        return
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert list(mine) == [key.value for key, _ in node.value]  # type: ignore[union-attr]
