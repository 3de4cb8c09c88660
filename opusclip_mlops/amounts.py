"""Amounts as people read them."""

_KIB = 1024


def size_text(size_bytes: int) -> str:
    """A size in bytes, KiB, MiB or GiB, with one digit behind the point."""
    size: float = size_bytes
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < _KIB or unit == "GiB":
            break
        size /= _KIB
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
