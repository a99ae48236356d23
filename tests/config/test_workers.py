"""trainer.num_workers: a number or a range, from the command line to what readers ask of it."""

from __future__ import annotations

import pytest

from distmetric.config.compose import load, resume
from distmetric.config.decode import decode
from distmetric.config.schema import Config, TrainerConfig
from distmetric.errors import ConfigError
from distmetric.training.saved_model import config_dict


def trainer(text: str) -> TrainerConfig:
    return load("config", Config, [f"trainer.num_workers={text}"]).trainer


@pytest.mark.parametrize(
    ("text", "least", "most", "is_elastic", "shown"),
    [("3", 3, 3, False, "3"), ("[1,4]", 1, 4, True, "1 to 4"), ("[2, 2]", 2, 2, True, "2")],
)
def test_a_number_or_a_range(text: str, least: int, most: int, is_elastic: bool, shown: str) -> None:
    found = trainer(text)
    assert (found.min_workers, found.max_workers) == (least, most)
    assert (found.is_elastic, found.workers()) == (is_elastic, shown)


@pytest.mark.parametrize("text", ["[]", "[2]", "[0,2]", "[3,2]", "[1,2,3]", "[-1,1]"])
def test_a_range_that_is_none_is_told_with_what_is(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(text)
    shown = "[" + ", ".join(text.strip("[]").split(",")) + "]"
    assert str(caught.value) == (
        f"trainer: num_workers={shown} is wrong: give one number, or [min, max] with 1 <= min <= max"
    )


@pytest.mark.parametrize(
    "text", ["1.5", "many", "[1,many]", "[1,2.5]", "true", "[true,2]", "null", "{min: 1}"]
)
def test_what_is_no_number_of_workers_is_told_in_one_line(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^trainer\.num_workers=.* must be a whole number or a list"
    ) as caught:
        trainer(text)
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_with_another_range() -> None:
    config = load("config", Config, ["trainer.num_workers=[1,4]", "trainer.resize_check_s=5"])
    again = decode(Config, resume(config_dict(config), ["trainer.num_workers=[2,3]"]))
    assert (again.trainer.num_workers, again.trainer.resize_check_s) == ([2, 3], 5.0)
    assert decode(Config, resume(config_dict(config), ["trainer.num_workers=2"])).trainer.max_workers == 2
