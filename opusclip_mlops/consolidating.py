"""Whole weights made of a checkpoint that several processes wrote by their shares."""

from dataclasses import replace
from pathlib import Path

from opusclip_mlops.checkpoints import WEIGHTS, finish, flushed, read_metadata
from opusclip_mlops.shards import Slices
from opusclip_mlops.unfinished import unfinished


def consolidated(folder: Path, into: Path) -> Path:
    """Make of a checkpoint of shares, once verified, one with whole weights alone; its folder.

    Raises:
        CheckpointError: a share cannot be read.
        OSError: the disk takes no change.
    """
    from safetensors.torch import save_file

    metadata = read_metadata(folder)
    shares = Slices(folder / name for name in metadata.shards("weights"))
    into.mkdir(parents=True, exist_ok=True)
    with unfinished(into / folder.name) as temporary:
        save_file({name: shares.whole(name) for name in shares.shapes}, temporary / WEIGHTS)
        whole = replace(metadata, files={WEIGHTS: flushed(temporary / WEIGHTS)})
        finish(temporary, into / folder.name, whole)
    return into / folder.name
