"""Clips of a run for its walls: files on this machine, fetched once each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.decoding import ffmpeg_errors, opened
from opusclip_mlops.errors import VideoError
from opusclip_mlops.listing import download, is_listed
from opusclip_mlops.refusals import asking_faults, is_for_good
from opusclip_mlops.wall_page import Film


class ClipFolder:
    """Clips of one run as files here; each is fetched once.

    Args:
        repository: Where the run's artifacts lie.
        folder: Where to put what is fetched.
        here: Says where an artifact lies on this machine already, None where it does not.
    """

    def __init__(
        self,
        repository: ArtifactRepository,
        folder: Path,
        here: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        self._repository, self._folder, self._here = repository, folder, here
        self._known: dict[str, Film] = {}

    def film(self, artifact: str) -> Film | str:
        """A clip, or why there is none.

        Raises:
            MlflowException, OSError, or S3's own: MLflow does not answer now.
        """
        known = self._known.get(artifact)
        if known and known.path.exists():
            return known
        found = self._found(artifact)
        # One that is not there may come yet.
        if isinstance(found, Film):
            self._known[artifact] = found
        return found

    def _found(self, artifact: str) -> Film | str:
        local = self._here(artifact)
        path = local or self._folder / f"{hashlib.sha256(artifact.encode()).hexdigest()[:24]}.mp4"
        try:
            if not path.exists():
                download(self._repository, artifact, path)
            return film_at(path)
        except VideoError:
            return "this clip cannot be read as video"
        except asking_faults() as error:
            if not is_for_good(error) and is_listed(self._repository, artifact):
                raise
            return "this clip is gone from MLflow"


def film_at(path: Path) -> Film:
    """What a clip's file says of its pictures, which are counted at most; none is decoded.

    Raises:
        VideoError: It is no video, or says too little.
    """
    with ffmpeg_errors(f"{path.name} cannot be read as video"), opened(path) as container:
        stream = container.streams.video[0]
        rate, width, height = stream.average_rate, stream.width, stream.height
        # A webm does not state how many there are.
        frames = stream.frames or sum(1 for one in container.demux(stream) if one.size)
    if not rate or frames < 1 or not width or not height:
        raise VideoError(f"{path.name} does not say how many pictures it has")
    return Film(path=path, frames=frames, fps=float(rate), width=width, height=height)
