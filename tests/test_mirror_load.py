"""Facts about `opusclip_mlops.mirror_load`: what a mirror is brought, and in which order."""

from opusclip_mlops.listing import Part
from opusclip_mlops.mirror_load import load_of, ordered
from opusclip_mlops.points import Points
from opusclip_mlops.records import Params, Text

NO_POINTS = Points.of(())


def test_what_has_a_step_is_told_from_words() -> None:
    """Each part is in one of the two, and all count."""
    text, params = Part(Text(1, 2, "k", "")), Part(Params({"a": "1"}))
    load = load_of(NO_POINTS, [params, text])
    assert (load.media, load.words, len(load)) == ((text,), (params,), 2)
    assert len(load_of(NO_POINTS, [])) == 0


def test_tensorboard_is_sent_steps_in_order_and_wandb_times() -> None:
    """TensorBoard hides what comes behind a higher step; W&B has only times."""
    late, early = Part(Text(9, 1, "k", "")), Part(Text(1, 5, "k", ""))
    load = load_of(NO_POINTS, [late, early])
    assert ordered(load, by_step=True) == [late, early]
    assert ordered(load, by_step=False) == [early, late]
