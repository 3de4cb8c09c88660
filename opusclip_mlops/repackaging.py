"""A file's pictures, as they are encoded, copied into another file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from av.packet import Packet

from opusclip_mlops.clip_files import Codec, created
from opusclip_mlops.decoding import codec_name, ffmpeg_errors, opened
from opusclip_mlops.errors import VideoError


def repackage(
    source: Path, path: Path, *, codec: Codec, metadata: Mapping[str, str], audio: frozenset[str]
) -> None:
    """Copy a file's pictures, as they are encoded, into another file with other texts.

    Args:
        source: a file whose pictures are encoded by `codec` already.
        path: where to write.
        codec: which kind of file is made.
        metadata: what the new file says; nothing else that the old one said is kept.
        audio: the codecs of sound that is copied too; any other is left out.

    Raises:
        VideoError: it cannot be read, or its pictures not be copied.
    """
    with (
        ffmpeg_errors(f"{source} cannot be copied to {path.parent}"),
        opened(source) as given,
        created(path, codec) as made,
    ):
        made.metadata.update(metadata)
        heard = [one for one in given.streams.audio if codec_name(one) in audio]
        copied = [given.streams.video[0], *heard[:1]]
        try:
            pairs = {one.index: made.add_stream_from_template(one) for one in copied}
        except ValueError as error:
            raise VideoError(f"{source} cannot be copied: {error}") from error
        for packet in _timed(given.demux(*copied)):
            packet.stream = pairs[packet.stream_index]
            made.mux(packet)


def _timed(packets: Iterable[Packet[Any]]) -> Iterator[Packet[Any]]:
    """Packets that all have a time of decoding: Matroska states none for the first ones."""
    waiting: list[Packet[Any]] = []
    for packet in (one for one in packets if one.size):
        if packet.dts is None:
            waiting.append(packet)
            continue
        if packet.stream.type == "video":
            yield from _decoded_before(waiting, packet.dts)
            waiting = []
        yield packet
    yield from _decoded_before(waiting, (waiting[0].pts or 0) + 1 if waiting else 0)


def _decoded_before(packets: list[Packet[Any]], dts: int) -> Iterator[Packet[Any]]:
    for before, packet in enumerate(reversed(packets), 1):
        packet.dts = dts - before * (packet.duration or 1)
    yield from packets
