"""Facts about `opusclip_mlops.layout`: names of files say what they are, there and back."""

import re
import string

from hypothesis import example, given
from hypothesis import strategies as st

from opusclip_mlops import layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.records import check_key

T0_MS = 1_700_000_000_123
ALPHABET = string.ascii_letters + string.digits + "_-. :/éß映像ñ"


def is_legal(key: str) -> bool:
    try:
        check_key(key)
    except RecordError:
        return False
    return True


keys = st.text(ALPHABET, min_size=1, max_size=250).filter(is_legal)
steps = st.integers(-(2**63), 2**63 - 1)


@given(keys, steps)
def test_a_key_and_step_come_back_from_the_name_of_a_clip(key: str, step: int) -> None:
    """Any legal key and step, exactly."""
    path = f"{layout.clip_folder(key)}/step_{step:08d}-0123abcd.mp4"
    assert layout.clip_of(path) == layout.Named(key, step, 0, "0123abcd")


@given(keys, steps, st.text(max_size=20))
def test_a_key_step_and_time_come_back_from_the_name_of_a_text(
    key: str, step: int, text: str
) -> None:
    """Any legal key and step, exactly."""
    found = layout.text_of(layout.text_path(key, step, T0_MS, text))
    assert found is not None
    assert (found.key, found.step, found.timestamp_ms) == (key, step, T0_MS)


@given(keys, steps)
def test_tables_and_insights_come_back_from_their_names(key: str, step: int) -> None:
    """Kind, key, step and time, exactly; neither is taken for the other."""
    table = layout.table_path(key, step, T0_MS, "0123456789abcdef")
    assert layout.table_of(table) == layout.Named(key, step, T0_MS, "0123456789ab")
    insight = layout.insight_path("graph", key, step, T0_MS, "0123456789abcdef")
    wanted = layout.Named(key, step, T0_MS, "0123456789ab", "graph")
    assert layout.insight_of(insight) == wanted
    assert (layout.insight_of(table), layout.table_of(insight)) == (None, None)
    assert layout.insight_of(f"{insight.removesuffix('.json')}/vectors.npy") is None


@given(keys, steps)
def test_a_picture_s_key_is_exact_in_one_of_its_two_places(key: str, step: int) -> None:
    """The image grid's own name where that can hold the key, else a second copy has it."""
    shown = layout.image_of(f"images/{layout.image_stem(key, step, T0_MS, '0123456789ab')}.png")
    exact = layout.picture_path(key, step, T0_MS, "0123456789ab")
    found = layout.picture_of(exact) if exact else shown
    assert found == layout.Named(key, step, T0_MS, "0123456789ab")


def test_numbers_beyond_64_bits_are_none_of_ours() -> None:
    """A foreign file of such a name is a file like any other, and no reader stumbles over it."""
    for step, time_ms in ((2**63, 1), (-(2**63) - 1, 1), (1, 2**63), (10**4400, 1)):
        names = (
            layout.clip_of(f"media/video/k/step_{_digits(step)}-0123abcd.mp4") if time_ms == 1
            else None,
            layout.text_of(f"text/k/step_{_digits(step)}-{time_ms}-{'0' * 12}.txt"),
            layout.table_of(f"tables/k/step_{_digits(step)}-{time_ms}-{'0' * 12}.json"),
            layout.insight_of(f"insights/graph/k/step_{_digits(step)}-{time_ms}-{'0' * 12}.json"),
            layout.image_of(f"images/k+step+{_digits(step)}+timestamp+{time_ms}+0.png"),
        )  # fmt: skip
        assert names == (None,) * 5


def _digits(number: int) -> str:
    return "9" * 4400 if number == 10**4400 else str(number)


@given(keys, keys)
def test_different_keys_lie_in_different_folders(first: str, second: str) -> None:
    """`a:b` and `a_b` are not one."""
    same = layout.folder_of_key(first) == layout.folder_of_key(second)
    assert same == (first == second)


@given(keys)
@example("k" * 250)
@example("映" * 250)
def test_no_name_is_too_long_for_a_file_system(key: str) -> None:
    """255 bytes are what Linux takes, in every folder and for the picture of any key."""
    names = layout.folder_of_key(key).split("/")
    names.append(layout.image_stem(key, -(2**63), 10**15, "0123abcd") + "+compressed.webp")
    assert max(len(name.encode()) for name in names) <= 255


@given(st.text(string.ascii_letters + "_-. /", min_size=1, max_size=80).filter(is_legal), steps)
def test_a_picture_of_plain_letters_has_its_key(key: str, step: int) -> None:
    """What MLflow's grid can show comes back exactly, from the still and the moving picture."""
    stem = f"images/{layout.image_stem(key, step, T0_MS, '0123abcd')}"
    for ending in (".png", "+compressed.webp"):
        found = layout.image_of(stem + ending)
        assert found == layout.Named(key, step, T0_MS, "0123abcd")


def test_two_long_keys_stay_two_in_the_image_grid() -> None:
    """Keys that begin with the same 200 letters are not shown as one picture."""
    first, second = (layout.image_stem("k" * 200 + end, 1, T0_MS, "0") for end in "ab")
    assert first != second


def test_two_keys_of_other_letters_stay_two_in_the_image_grid() -> None:
    """MLflow's own client takes plain letters only: in their place stands the same for all."""
    keys = ["样本/一", "样本/二", "__/_", "a:b", "a_b", "a b"]
    stems = [layout.image_stem(key, 1, T0_MS, "0") for key in keys]
    assert len({layout.image_of(f"images/{one}.png").key for one in stems}) == len(keys)  # type: ignore[union-attr]
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-. ~]+", one.partition("+")[0]) for one in stems)


def test_names_of_earlier_versions_are_read() -> None:
    """MLflow wrote `%` and `#`, we wrote `_` for `:`."""
    old = layout.image_of("images/a#b%step%5%timestamp%17%0123-45.png")
    assert old == layout.Named("a/b", 5, 17, "0123-45")
    assert layout.clip_of("media/video/a_b/step_00000005-0123abcd.mp4") == layout.Named(
        "a_b", 5, 0, "0123abcd"
    )


def test_other_files_are_none_of_ours() -> None:
    """A user's own mp4, text or picture is not taken for a clip, text or picture of a step."""
    others = [
        "media/video/a/clip.mp4", "media/video/step_00000001-0123abcd.mp4", "text/notes.txt",
        "text/a/step_1.txt", "images/dog.png", "images/a+step+x+timestamp+1+y.png",
        "deep/images/a+step+1+timestamp+1+y.png", "images/a+step%1+timestamp+1+y.png",
    ]  # fmt: skip
    for path in others:
        assert (layout.clip_of(path), layout.text_of(path), layout.image_of(path)) == (None,) * 3
