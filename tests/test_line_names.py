"""Names on a run's line and beside it: each leads back to its key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.line_names import is_superseded_name, key_of, name_of, superseded_name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("generation-0/loss", "metrics/generation-0/loss"),
        ("metrics/generation-12/a/b", "metrics/metrics/generation-12/a/b"),
        ("generation-0", "generation-0"),
        ("generation-00/loss", "generation-00/loss"),
        ("generation-x/loss", "generation-x/loss"),
        ("generation-٣/loss", "generation-٣/loss"),
        ("metrics/loss", "metrics/loss"),
        ("a/generation-0/loss", "a/generation-0/loss"),
    ],
)
def test_a_key_that_looks_superseded_gets_a_prefix(key: str, name: str) -> None:
    """And only that; superseded, any key stands as it is behind its generation."""
    assert name_of(key) == name
    assert not is_superseded_name(name)
    assert superseded_name(key, 3) == f"generation-3/{key}"
    assert is_superseded_name(superseded_name(key, 3))


KEYS = st.lists(st.sampled_from(["generation-0/", "generation-7/", "metrics/", "a", "/"])).map(
    "".join
) | st.text(max_size=5)


@given(keys=st.sets(KEYS), generations=st.sets(st.integers(0, 3)))
def test_no_two_things_have_one_name(keys: set[str], generations: set[int]) -> None:
    """Whatever the keys are, each name leads back to its own."""
    names = {name_of(key): key for key in keys}
    names |= {superseded_name(key, n): key for key in keys for n in generations}
    assert len(names) == len(keys) * (1 + len(generations))
    assert all(key_of(name) == key for name, key in names.items())
