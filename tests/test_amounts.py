"""Amounts as people read them."""

import pytest

from opusclip_mlops.amounts import size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (3 * 2**20 + 2**19, "3.5 MiB"),
        (5000 * 2**30, "5,000.0 GiB"),
    ],
)
def test_a_size_is_read_at_a_glance(size_bytes: int, text: str) -> None:
    """In the unit that keeps it short."""
    assert size_text(size_bytes) == text
