"""Facts about `opusclip_mlops.values`: what is taken for a key, value or step, what is refused."""

import enum
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_PARAM_VAL_LENGTH,
    MAX_TAG_VAL_LENGTH,
    _validate_metric_name,
    _validate_param_name,
    _validate_tag_name,
)

from opusclip_mlops import values as legal
from opusclip_mlops.errors import OpusclipError, RecordError

REAL_DTYPES = [*"?bBhHiIlLqQefdg"]
TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
]


class Key(enum.StrEnum):
    LOSS = "train/loss"


# Values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(0.1, 0.1, id="float"),
        pytest.param(3, 3.0, id="int"),
        pytest.param(True, 1.0, id="bool"),
        pytest.param(Fraction(1, 3), 1 / 3, id="Fraction"),
        pytest.param(Decimal("1.5"), 1.5, id="Decimal"),
        pytest.param(np.float64(0.1), 0.1, id="numpy float64"),
        pytest.param(np.array(Fraction(1, 2), dtype=object), 0.5, id="0-d array of objects"),
        pytest.param(np.ma.array(3.0), 3.0, id="masked array that is not masked"),
        pytest.param(torch.nn.Parameter(torch.tensor(2.0)), 2.0, id="tensor with gradient"),
        pytest.param(2**1023, 2.0**1023, id="large int"),
    ],
)
def test_a_number_becomes_the_same_float(value: object, expected: float) -> None:
    """Whatever is one real number is kept as a plain float of that value."""
    found = legal.to_float("k", value)
    assert type(found) is float
    assert found == expected


@pytest.mark.parametrize("code", REAL_DTYPES)
@pytest.mark.parametrize("make", [lambda dtype: dtype.type(1), lambda dtype: np.array(1, dtype)])
def test_every_real_numpy_type_is_taken(code: str, make: Callable[[Any], object]) -> None:
    """Scalars and 0-d arrays of each real NumPy type become a plain float."""
    found = legal.to_float("k", make(np.dtype(code)))
    assert type(found) is float
    assert found == 1.0


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_every_real_torch_type_is_taken(dtype: torch.dtype) -> None:
    """0-d tensors of each real type become a plain float."""
    found = legal.to_float("k", torch.ones((), dtype=dtype))
    assert type(found) is float
    assert found == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        float,
        np.float16,
        np.float64,
        np.array,
        torch.tensor,
        lambda v: torch.tensor(v, dtype=torch.bfloat16),
        lambda v: Decimal(str(v)),
    ],
)
def test_nan_and_infinities_are_kept(value: float, make: Callable[[float], object]) -> None:
    """A loss that exploded is data: NaN and infinities stay what they are, in every form."""
    found = legal.to_float("k", make(value))
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_a_masked_value_is_nan() -> None:
    """The mean of nothing but masked pixels is no number, and above all not 0."""
    assert math.isnan(legal.to_float("k", np.ma.array([1.0, 2.0], mask=True).mean()))


@pytest.mark.parametrize(
    "value",
    [
        "1",
        b"1",
        None,
        [1],
        (1,),
        {"a": 1},
        {1},
        1j,
        object(),
        float,
        np.array([1.0]),
        np.array([[1.0]]),
        np.array([]),
        np.array("1.5"),
        np.str_("1.5"),
        np.array(b"1"),
        np.array(None),
        np.complex64(1),
        np.array(1j),
        np.datetime64("2024-01-01"),
        np.datetime64("2024-01-01", "ns"),
        np.timedelta64(5, "s"),
        np.timedelta64(5, "ns"),
        np.array(5, dtype="m8[ns]"),
        torch.tensor([1.0]),
        torch.ones(1, 1),
        torch.tensor(1j),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}".partition(" at 0x")[0][:60],
)
def test_anything_else_is_refused_by_name(value: object) -> None:
    """What is not one real number is a TypeError of one line that names the metric."""
    with pytest.raises(TypeError, match="metric 'train/loss' must be a number") as caught:
        legal.to_float("train/loss", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [2**1024, -(2**1024), 10**5000, Fraction(10**400), Fraction(10**5000)],
    ids=lambda value: type(value).__name__,
)
def test_an_integer_too_large_for_a_float_is_refused(value: Any) -> None:
    """Also one of more digits than Python is willing to print."""
    with pytest.raises(RecordError, match="metric 'k' is too large for a float"):
        legal.to_float("k", value)


def test_values_are_checked_together() -> None:
    """One bad value or key refuses the call; nothing and no mapping are refused too."""
    assert legal.to_values({"a": 1, "b": np.float32(0.5)}) == {"a": 1.0, "b": 0.5}
    for bad in ({"a": 1, "b": "x"}, [("a", 1)], None, 3):
        with pytest.raises(TypeError):
            legal.to_values(bad)  # type: ignore[arg-type]
    for wrong in ({}, {"a//b": 1}):
        with pytest.raises(RecordError):
            legal.to_values(wrong)


# Keys


def is_taken(key: str) -> bool:
    try:
        legal.check_key(key)
    except RecordError:
        return False
    return True


def mlflow_takes(validate: Callable[[str], None], key: str) -> bool:
    try:
        validate(key)
    except MlflowException:
        return False
    return len(key) <= MAX_ENTITY_KEY_LENGTH


KEYS = st.one_of(
    st.text(st.sampled_from("aZ0_-.: /\\éß日٣\u0301\u00a0\n\t@%[]\x00\ud83d"), max_size=12),
    st.text(max_size=20),
    st.lists(st.sampled_from(["a", "..", ".", "", " ", "b c"]), max_size=5).map("/".join),
    st.integers(245, 255).map("k".__mul__),
)


@settings(max_examples=1200, deadline=None)
@given(key=KEYS)
def test_a_key_is_legal_exactly_where_mlflow_takes_it(key: str) -> None:
    """MLflow takes what we take; it alone takes blank keys and one newline at the end."""
    blank = not key.strip() or key.endswith("\n")
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        assert is_taken(key) == (mlflow_takes(validate, key) and not blank)


@pytest.mark.parametrize("key", [None, 3, b"k", 1.5, True, ["k"], ("k",)])
def test_a_key_that_is_no_string_is_a_type_error(key: Any) -> None:
    """Also one that cannot be hashed."""
    with pytest.raises(TypeError, match="a key must be a string"):
        legal.check_key(key)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("k" * 251, "251 characters"),
        ("loss@1", "may hold letters"),
        ("a//b", "plain path"),
        ("/a", "plain path"),
        ("../a", "plain path"),
    ],
)
def test_a_refused_key_is_told_why(key: str, why: str) -> None:
    """The message is one short line with the key and the rule it breaks, each time."""
    for _ in range(2):
        with pytest.raises(RecordError, match=why) as caught:
            legal.check_key(key)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


def test_keys_of_other_string_types_are_taken() -> None:
    """Names out of a NumPy array and members of an enumeration are keys."""
    assert legal.to_values({np.str_("a"): 1, Key.LOSS: 2}) == {"a": 1.0, "train/loss": 2.0}


# Steps


@pytest.mark.parametrize(
    "step",
    [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), torch.tensor(5, dtype=torch.uint8)],
    ids=lambda step: type(step).__name__,
)
def test_a_whole_number_is_a_step(step: object) -> None:
    """Steps come as plain ints from Python, NumPy and torch alike."""
    found = legal.to_step(step)
    assert type(found) is int
    assert found == 5


@pytest.mark.parametrize(
    "step", [2.0, np.float64(2), torch.tensor(2.0), "2", None, [2], np.array([2]), Fraction(2)]
)
def test_a_step_that_is_not_whole_is_a_type_error(step: object) -> None:
    """Even 2.0: a float step is a mistake that shows later, at a large one."""
    with pytest.raises(TypeError, match="step must be a whole number"):
        legal.to_step(step)


@pytest.mark.parametrize("step", [0, -1, 2**63 - 1, -(2**63), np.uint64(2**63 - 1)])
def test_steps_reach_to_the_ends_of_64_bits(step: Any) -> None:
    """The largest and smallest step the record holds are taken."""
    assert legal.to_step(step) == int(step)


@pytest.mark.parametrize(
    "step",
    [2**63, -(2**63) - 1, np.uint64(2**64 - 1), 10**5000],
    ids=["one above", "one below", "uint64", "5001 digits"],
)
def test_steps_beyond_64_bits_are_refused(step: Any) -> None:
    """One more is refused, and so is one too long to print."""
    with pytest.raises(RecordError, match="64 bits"):
        legal.to_step(step)


# Params and tags


@pytest.mark.parametrize(
    ("what", "limit"), [("param", MAX_PARAM_VAL_LENGTH), ("tag", MAX_TAG_VAL_LENGTH)]
)
def test_text_is_refused_where_mlflow_would_cut_it_off(what: str, limit: int) -> None:
    """A param or tag is stored whole or refused with its length, never cut."""
    assert legal.to_text_values({"k": "x" * limit}, what=what) == {"k": "x" * limit}
    with pytest.raises(RecordError, match=f"{what} 'k' has {limit + 1} characters"):
        legal.to_text_values({"k": "x" * (limit + 1)}, what=what)


def test_params_are_texts_of_what_was_given() -> None:
    """Every value is kept as `str` writes it."""
    given = {"lr": 1e-4, "on": True, "none": None, "name": "é😀", "shape": (2, 3), "n": np.int64(4)}
    assert legal.to_text_values(given) == {
        "lr": "0.0001",
        "on": "True",
        "none": "None",
        "name": "é😀",
        "shape": "(2, 3)",
        "n": "4",
    }


@pytest.mark.parametrize(
    ("values", "error"),
    [({"a//b": 1}, RecordError), ({3: 1}, TypeError), ([("a", 1)], TypeError), ("a", TypeError)],
)
def test_params_that_are_no_names_and_values_are_refused(values: Any, error: type) -> None:
    """Keys are checked as those of metrics are."""
    with pytest.raises(error):
        legal.to_text_values(values)


def test_every_refusal_is_one_of_the_packages_errors() -> None:
    """`except OpusclipError` catches a refused key and so does `except ValueError`."""
    with pytest.raises(OpusclipError):
        legal.check_key("")
    with pytest.raises(ValueError, match="empty"):
        legal.check_key("")
