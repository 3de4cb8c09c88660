"""Models: what they learn at the default settings, and what `generate` and `predict` promise."""

import math

import numpy as np
import pytest
import torch

from opusclip_mlops.projects import train
from opusclip_mlops.projects.data import load_dataset
from opusclip_mlops.projects.judging import validate
from opusclip_mlops.projects.models import (
    KINDS,
    ClipModel,
    ModelConfig,
    TransformerModel,
    VideoGenerationModel,
    build_model,
)

CAPTION = "a red kite over the sea"
PROMPTS = ["", " \n", CAPTION, "ein grüner Hügel 🐇 風", "\x00", "wort " * 2000]
DEFAULTS = {str(option.name): option.default for option in train.command.params}

each_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind: str, **shape: int) -> ClipModel:
    """An untrained model of clips of 4 frames, 16 by 16, with no weight at rest."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind=kind, **{"frames": 4, "size": 16, **shape}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def noise(*, clips: int = 2, frames: int = 4, size: int = 16, seed: int = 1) -> torch.Tensor:
    """Clips of noise in 0..1."""
    return torch.rand(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> train.Training:
    """A model trained on the sample clip with every default of the command."""
    settings = train.Settings.read({**DEFAULTS, "model": request.param})
    torch.manual_seed(settings.seed)
    dataset = load_dataset(settings.data, frames=settings.frames, size=settings.size)
    training = train.Training(settings, dataset)
    for _ in range(settings.epochs * dataset.steps_per_epoch):
        training.do_step()
    return training


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures or clips in 0..255, in dB."""
    return 10 * math.log10(255**2 / np.square(one.astype(float) - other).mean())


def train_frames(training: train.Training) -> np.ndarray:
    """The frames that were trained on, uint8 (T, H, W, 3)."""
    frames = training.dataset.clips[0].train
    return frames.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def test_the_defaults_beat_the_mean_frame_on_held_out_frames(trained: train.Training) -> None:
    """On frames never trained on, a model is 2 dB closer than the mean training frame or better."""
    scores = validate(trained.model, trained.dataset, batch_size=4)
    assert scores.psnr > scores.baseline_psnr + 2
    assert math.isfinite(scores.loss)


def test_a_trained_model_generates_the_scene_and_it_moves(trained: train.Training) -> None:
    """Each frame made is near a real one, no two neighbours are the same, the ends differ most."""
    caption = trained.dataset.clips[0].caption
    real = train_frames(trained)
    made = trained.model.generate(caption, seed=1)
    assert min(max(psnr(frame, one) for one in real) for frame in made) > 16
    steps = np.abs(np.diff(made.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0
    assert np.abs(made[0].astype(int) - made[-1]).mean() > 1.5


@each_kind
def test_the_same_seed_makes_the_same_clip(kind: str) -> None:
    """Byte for byte, whatever was drawn before; another seed makes another clip."""
    model = small(kind)
    first = model.generate(CAPTION, seed=3)
    torch.rand(7)
    assert np.array_equal(first, model.generate(CAPTION, seed=3))
    others = [model.generate(CAPTION, seed=seed) for seed in (0, 4, 2**63 - 1)]
    assert not any(np.array_equal(first, other) for other in others)


@each_kind
def test_generating_leaves_no_trace(kind: str) -> None:
    """Neither the global random numbers nor the mode nor any gradient change."""
    model = small(kind)
    for training in (True, False):
        model.train(training)
        state = torch.get_rng_state()
        model.generate(CAPTION, seed=5)
        assert torch.equal(state, torch.get_rng_state())
        assert all(module.training is training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())


@each_kind
@pytest.mark.parametrize("frames", [None, 1, 2, 3, 9, 256])
def test_any_length_up_to_256_frames_can_be_generated(kind: str, frames: int | None) -> None:
    """The clip is uint8 (T, H, W, 3) of the length asked for, else of the trained one."""
    made = small(kind).generate(CAPTION, frames=frames)
    assert made.shape == (frames or 4, 16, 16, 3)
    assert made.dtype == np.uint8


@each_kind
def test_a_mode_is_restored_when_a_request_is_refused(kind: str) -> None:
    """A request out of range names the parameter and leaves a training model training."""
    model = small(kind).train()
    for given, name in [
        ({"frames": 0}, "frames"),
        ({"frames": 257}, "frames"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ]:
        with pytest.raises(ValueError, match=name):
            model.generate(CAPTION, **given)
    with pytest.raises(TypeError, match="prompt"):
        model.generate(None)  # type: ignore[arg-type]
    assert model.training


@each_kind
@pytest.mark.parametrize(
    "prompt", PROMPTS, ids=["empty", "blank", "plain", "unicode", "nul", "long"]
)
def test_any_text_is_a_prompt(kind: str, prompt: str) -> None:
    """Empty, in any script or very long: a clip comes back."""
    assert small(kind).generate(prompt).shape == (4, 16, 16, 3)


@each_kind
def test_captions_matter(kind: str) -> None:
    """With the same seed another caption makes another clip."""
    model = small(kind)
    assert not np.array_equal(model.generate(CAPTION), model.generate("a grey rabbit"))


@each_kind
@pytest.mark.parametrize(("frames", "size"), [(2, 16), (5, 24), (8, 64)])
def test_a_prediction_has_the_shape_of_its_clip(kind: str, frames: int, size: int) -> None:
    """Predictions lie in 0..1, a caption for each clip, for any size both models divide."""
    model = small(kind, frames=frames, size=size).eval()
    clip = noise(frames=frames, size=size)
    with torch.no_grad():
        predicted = model.predict(clip, [CAPTION, ""])
        again = model.predict(clip, [CAPTION, ""])
    assert predicted.shape == clip.shape
    assert 0 <= predicted.min() <= predicted.max() <= 1
    assert torch.equal(predicted, again)


@each_kind
def test_every_weight_is_trained(kind: str) -> None:
    """The loss is the finite sum its parts make, and reaches each parameter."""
    model = small(kind).train()
    loss, parts = model.loss(noise(clips=8), [CAPTION] * 8)
    loss.backward()
    assert loss.ndim == 0
    assert all(math.isfinite(part.item()) for part in (loss, *parts.values()))
    silent = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert silent == []


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_the_transformer_knows_nothing_of_a_frame_before_it_has_passed(changed: int) -> None:
    """A change of frame t leaves the predictions of all frames up to t as they are, not later."""
    model = small("transformer").eval()
    clip, other = noise(), noise()
    other[:, changed] = noise(seed=9)[:, changed]
    with torch.no_grad():
        before, after = model.predict(clip, [CAPTION, ""]), model.predict(other, [CAPTION, ""])
    assert torch.equal(before[:, : changed + 1], after[:, : changed + 1])
    for later in range(changed + 1, 4):
        assert not torch.allclose(before[:, later], after[:, later])


def test_the_transformer_begins_with_the_caption_alone() -> None:
    """The first frame is the same whatever is shown, and another for another caption."""
    model = small("transformer").eval()
    with torch.no_grad():
        first = model.predict(noise(clips=1), [CAPTION])[:, 0]
        other_clip = model.predict(noise(clips=1, seed=2), [CAPTION])[:, 0]
        other_caption = model.predict(noise(clips=1), ["a grey rabbit"])[:, 0]
    assert torch.equal(first, other_clip)
    assert not torch.equal(first, other_caption)


def test_the_video_model_sees_a_clip_through_a_bottleneck() -> None:
    """What its decoder is given is at least ten times smaller than the pixels."""
    model = small("video", size=64).eval()
    clip, given = noise(clips=1, size=64), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model.predict(clip, [CAPTION])
    assert [latents.numel() * 10 <= clip.numel() for latents in given] == [True]


@each_kind
def test_a_model_is_built_again_from_its_configuration(kind: str) -> None:
    """The dict of a configuration, with fields of others, builds a model for the same weights."""
    model = small(kind, width=16)
    fields = {**model.config.to_dict(), "fps": 25.0}
    again = build_model(ModelConfig.from_dict(fields))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert type(again) is {"video": VideoGenerationModel, "transformer": TransformerModel}[kind]
    assert np.array_equal(model.generate(CAPTION), again.generate(CAPTION))


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "gan"), ("frames", 1), ("frames", 257), ("size", 8), ("size", 20)],
)
def test_a_configuration_out_of_range_is_refused(field: str, value: object) -> None:
    """The error says which value is wrong."""
    with pytest.raises(ValueError, match=str(value)):
        ModelConfig(**{field: value})  # type: ignore[arg-type]
