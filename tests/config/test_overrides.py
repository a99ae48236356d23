"""Values as text on a command line, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.config.compose import compose, to_override, value_of

NAMES = st.text("abcxyz_", min_size=1)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@settings(deadline=None, max_examples=300)
def test_a_value_written_and_read_is_the_same(value) -> None:
    found = value_of("a.b", [to_override("a.b", value)])
    assert found == value
    assert repr(found) == repr(value)  # 1 is not True, and 1.0 is not 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("triplet", "a=triplet"),
        ("true", "a='true'"),
        ("1e5", "a='1e5'"),
        (1e-5, "a=1e-05"),
        (None, "a=null"),
        (True, "a=true"),
        ([[8, 8], [16]], "a=[[8, 8], [16]]"),
        ({"low": 1, "high": 2.5}, "a={low: 1, high: 2.5}"),
    ],
)
def test_values_look_as_one_would_write_them(value, text: str) -> None:
    assert to_override("a", value) == text


def test_the_text_is_what_composing_takes() -> None:
    values = compose("config", [to_override("name", "a 'b' $c"), to_override("loss", "supcon")])
    assert (values["name"], values["loss"]["name"]) == ("a 'b' $c", "supcon")
