"""Where `last_checkpoint` is known to be: see `opusclip_mlops.resuming`."""

from opusclip_mlops.resuming import last_checkpoint

__all__ = ["last_checkpoint"]
