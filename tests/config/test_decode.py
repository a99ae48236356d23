"""Plain values become dataclasses or one line that names the key, the value and what it must be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distmetric.config import schema as c
from distmetric.config.decode import decode, leaves, unknown_key
from distmetric.errors import ConfigError
from runs import default_config


@dataclass(kw_only=True, frozen=True)
class Circle:
    """One of two shapes."""

    name: Literal["circle", "disk"] = "circle"
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Check the radius."""
        if self.radius < 0:
            raise ValueError(f"radius={self.radius} must not be negative")


@dataclass(kw_only=True, frozen=True)
class Square:
    """The other one."""

    name: Literal["square"] = "square"
    side: int


@dataclass(kw_only=True, frozen=True)
class Sample:
    """Every kind of field."""

    count: int = 0
    rate: float = 0.5
    on: bool = False
    text: str = ""
    maybe: str | None = None
    mode: Literal["fast", "exact"] = "fast"
    level: Literal[1, 2] = 1
    margin: float | Literal["soft"] = "soft"
    sizes: list[int] = field(default_factory=list)
    corner: tuple[int, str] = (0, "")
    trail: tuple[int, ...] = ()
    source: str | list[str] = ""
    extra: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    shape: Circle | Square = field(default_factory=Circle)
    only: Circle = field(default_factory=Circle)
    shapes: list[Circle | Square] = field(default_factory=list)


def refused(values: Any, schema: type[Any] = Sample) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(schema, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


texts = st.text(max_size=5)
circles = st.fixed_dictionaries(
    {"name": st.sampled_from(["circle", "disk"]), "radius": st.floats(0, allow_nan=False)}
)
squares = st.fixed_dictionaries({"name": st.just("square"), "side": st.integers()})
valid = {
    "count": st.integers(),
    "rate": st.floats(allow_nan=False),
    "on": st.booleans(),
    "text": texts,
    "maybe": st.none() | texts,
    "mode": st.sampled_from(["fast", "exact"]),
    "level": st.sampled_from([1, 2]),
    "margin": st.floats(allow_nan=False) | st.just("soft"),
    "sizes": st.lists(st.integers()),
    "corner": st.tuples(st.integers(), texts),
    "trail": st.lists(st.integers()).map(tuple),
    "source": texts | st.lists(texts),
    "extra": st.dictionaries(texts, st.none() | texts | st.lists(st.integers())),
    "weights": st.dictionaries(texts, st.floats(allow_nan=False)),
    "shape": circles | squares,
    "only": circles,
    "shapes": st.lists(circles | squares, max_size=2),
}


@settings(deadline=None, max_examples=80)
@given(st.fixed_dictionaries({}, optional=valid))
def test_what_fits_comes_through_and_the_rest_takes_its_default(values: dict[str, Any]) -> None:
    assert asdict(decode(Sample, values)) == asdict(Sample()) | values


def test_an_int_is_a_float_and_a_list_a_tuple() -> None:
    sample = decode(Sample, {"rate": 3, "margin": 1, "corner": [1, "x"], "trail": [1, 2]})
    assert (sample.rate, type(sample.rate), type(sample.margin)) == (3.0, float, float)
    assert (sample.corner, sample.trail) == ((1, "x"), (1, 2))
    assert decode(Sample, {"rate": math.inf}).rate == math.inf


def test_unions_are_told_apart_by_name() -> None:
    assert decode(Sample, {"shape": {"name": "disk", "radius": 2}}).shape == Circle(name="disk", radius=2.0)
    assert decode(Sample, {"shape": {"name": "square", "side": 2}}).shape == Square(side=2)
    assert decode(Sample, {"shapes": [{"name": "square", "side": 2}]}).shapes == [Square(side=2)]


WRONG: list[tuple[str, Any, str]] = [
    ("count", 1.5, "count=1.5 is wrong: it must be a whole number"),
    ("count", 1.0, "count=1.0 is wrong: it must be a whole number"),
    ("count", True, "count=true is wrong: it must be a whole number"),
    ("count", "1", "count='1' is wrong: it must be a whole number"),
    ("count", None, "count=null is wrong: it must be a whole number"),
    ("rate", False, "rate=false is wrong: it must be a number"),
    ("rate", "0.1", "rate='0.1' is wrong: it must be a number"),
    ("rate", math.nan, "rate=nan is wrong: it must be a number"),
    ("on", 1, "on=1 is wrong: it must be true or false"),
    ("on", "yes", "on='yes' is wrong: it must be true or false"),
    ("text", 5, "text=5 is wrong: it must be text"),
    ("text", None, "text=null is wrong: it must be text"),
    ("maybe", 5, "maybe=5 is wrong: it must be text or null"),
    ("mode", "slow", "mode='slow' is wrong: it must be fast or exact"),
    ("mode", ["fast"], "mode=['fast'] is wrong: it must be fast or exact"),
    ("level", True, "level=true is wrong: it must be 1 or 2"),
    ("level", 3, "level=3 is wrong: it must be 1 or 2"),
    ("margin", "hard", "margin='hard' is wrong: it must be a number or soft"),
    ("margin", True, "margin=true is wrong: it must be a number or soft"),
    ("sizes", 5, "sizes=5 is wrong: it must be a list, each of them a whole number"),
    ("sizes", "12", "sizes='12' is wrong: it must be a list, each of them a whole number"),
    ("sizes", [1, "x"], "sizes[1]='x' is wrong: it must be a whole number"),
    ("corner", [1], "corner=[1] is wrong: it must be a list of 2 values"),
    ("corner", ["x", "y"], "corner[0]='x' is wrong: it must be a whole number"),
    ("trail", 3, "trail=3 is wrong: it must be a list, each of them a whole number"),
    ("trail", [1, 2, None], "trail[2]=null is wrong: it must be a whole number"),
    ("source", 3, "source=3 is wrong: it must be text or a list, each of them text"),
    ("source", [3], "source=[3] is wrong: it must be text or a list, each of them text"),
    ("extra", "x", "extra='x' is wrong: it must be a group of settings"),
    ("weights", {"a": {"b": 1}}, "weights.a={'b': 1} is wrong: it must be a number"),
    ("shape", "circle", "shape='circle' is wrong: it must be a group of settings"),
    ("shape", None, "shape=null is wrong: it must be a group of settings"),
    ("shape", {}, "shape.name=null is wrong: it must be one of circle, disk, square"),
    ("shape", {"name": "oval"}, "shape.name='oval' is wrong: it must be one of circle, disk, square"),
    ("shape", {"name": [1]}, "shape.name=[1] is wrong: it must be one of circle, disk, square"),
    ("shape", {"name": "square"}, "shape.side is required: give it as shape.side=..."),
    ("shape", {"name": "square", "radius": 1}, "shape.radius is not a setting: shape has name, side"),
    ("shape", {"name": "circle", "radius": -1}, "shape: radius=-1.0 must not be negative"),
    ("only", 3, "only=3 is wrong: it must be a group of settings"),
    ("only", {"radius": "x"}, "only.radius='x' is wrong: it must be a number"),
    (
        "shapes",
        [{"name": "square", "sid": 1}],
        "shapes[0].sid is not a setting: did you mean shapes[0].side?",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_what_does_not_fit_is_told_in_one_line(key: str, value: Any, message: str) -> None:
    assert refused({key: value}) == message


def test_a_number_beyond_all_floats_is_told_like_any_other() -> None:
    assert refused({"rate": 10**400}) == f"rate={str(10**400)[:200]}... is wrong: it must be a number"
    assert refused({"rate": 10**5000}) == "rate=(int) is wrong: it must be a number"


def test_mistakes_at_the_top() -> None:
    assert refused(5) == "the configuration=5 is wrong: it must be a group of settings"
    assert refused({}, Square) == "side is required: give it as side=..."
    assert refused({"radius": -1}, Circle) == "radius=-1.0 must not be negative"
    assert refused({"cuont": 5}) == "cuont is not a setting: did you mean count?"
    assert refused({5: 5}) == "5 is not a setting: --cfg prints all there are"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.stepz", "did you mean train.steps?"),
        ("trian.steps", "did you mean train.steps?"),
        ("Train.Steps", "did you mean train.steps?"),
        ("steps", "did you mean train.steps?"),
        ("lr", "did you mean optim.lr?"),
        ("sede", "did you mean seed?"),
        ("train.zzz", "train has log_every, steps"),
        ("zzz", "--cfg prints all there are"),
        ("zzz.zzz", "--cfg prints all there are"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(key: str, message: str) -> None:
    known = ["seed", "train.steps", "train.log_every", "optim.lr", "eval.ks"]
    assert unknown_key(key, known) == f"{key} is not a setting: {message}"
    assert unknown_key(key, iter(known)) == unknown_key(key, known)


def test_leaves_are_flat_and_keep_empty_groups() -> None:
    nested = {"a": 1, "b": {"c": [1], "d": {"e": None}, "f": {}}}
    assert leaves(nested) == {"a": 1, "b.c": [1], "b.d.e": None, "b.f": {}}


BASE = asdict(default_config())
KEYS = sorted([*leaves(BASE), *(key for key, value in BASE.items() if isinstance(value, dict))])
names = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=4)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def with_value(key: str, value: Any) -> dict[str, Any]:
    def changed(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
        name, *rest = path
        return values | {name: changed(values[name], rest) if rest else value}

    return changed(BASE, key.split("."))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(KEYS), anything)
@example("optim.lr", 10**400)
@example("loss.name", [1])
@example("loss", {"name": {}})
def test_anything_anywhere_is_taken_or_told_in_one_line(key: str, value: Any) -> None:
    message = None
    try:
        config = decode(c.Config, with_value(key, value))
    except ConfigError as error:
        message = str(error)
    if message is None:
        assert decode(c.Config, asdict(config)) == config
    else:
        assert "\n" not in message
        assert key.partition(".")[0] in message


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([key for key in leaves(BASE) if len(key.rpartition(".")[2]) > 2]), st.data())
def test_a_letter_too_many_is_found(key: str, data: st.DataObject) -> None:
    section, dot, leaf = key.rpartition(".")
    at = data.draw(st.integers(0, len(leaf)))
    typo = f"{section}{dot}{leaf[:at]}q{leaf[at:]}"
    message = refused(with_value(typo, 1), c.Config)
    assert message.startswith(f"{typo} is not a setting: did you mean {section}{dot}")


@dataclass(kw_only=True, frozen=True)
class Ramp:
    """A number that changes."""

    start: float
    end: float = 0.0


@dataclass(kw_only=True, frozen=True)
class Knob:
    """A number or a group of settings."""

    level: float | Ramp = 1.0


def test_a_number_may_also_be_a_group_of_settings() -> None:
    assert decode(Knob, {"level": 2}) == Knob(level=2.0)
    assert decode(Knob, {"level": {"start": 3}}) == Knob(level=Ramp(start=3.0))
    assert decode(Knob, asdict(Knob(level=Ramp(start=1.0)))) == Knob(level=Ramp(start=1.0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("high", "level='high' is wrong: it must be a number or a group of settings"),
        ({"start": "x"}, "level.start='x' is wrong: it must be a number"),
        ({"start": 1, "stop": 2}, "level.stop is not a setting: did you mean level.start?"),
        ({}, "level.start is required: give it as level.start=..."),
    ],
)
def test_a_wrong_group_in_place_of_a_number_names_its_own_key(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode(Knob, {"level": value})
    assert str(error.value) == message
