"""The plan of a search: what its trials share, and the settings of each, all of them checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distmetric.config.compose import compose, read_settings, to_override
from distmetric.config.decode import decode, leaves
from distmetric.config.jobs.study import StudyJob
from distmetric.config.jobs.tune import TuneJob
from distmetric.config.schema import Config
from distmetric.config.tune_space import Choices, Space, draw_trials, parse_space, with_whole_numbers
from distmetric.config.validate import validate
from distmetric.errors import ConfigError

# What the search decides for its trials: where they are kept, what they are compared by.
_OWN = ("name", "output_dir", "report", "resume", "allow_custom_targets")
_OF_THE_SEARCH = {
    **{key: f"{key}=... of the search itself" for key in _OWN},
    "checkpoint.best_metric": "metric=...",
}


@dataclass(frozen=True)
class Trial:
    """One configuration that is tried.

    Args:
        name: Of its run, unique in the search.
        settings: What distinguishes it, by dotted key.
        config: The whole configuration, as plain containers; where it is kept is decided later.
    """

    name: str
    settings: dict[str, Any]
    config: dict[str, Any] = field(repr=False)

    @property
    def overrides(self) -> list[str]:
        """What sets its settings on a command line."""
        return [to_override(key, value) for key, value in self.settings.items()]


@dataclass(frozen=True)
class TunePlan:
    """A search before it starts.

    Args:
        job: Its settings, with the contents of the files that were given.
        trials: Its trials, in the order they start.
        shared: What sets on a command line what they have in common.
        study: What its trials are the runs of; None for a search.
    """

    job: TuneJob
    trials: tuple[Trial, ...]
    shared: tuple[str, ...] = ()
    study: StudyJob | None = None

    @property
    def kind(self) -> Literal["tune", "study"]:
        """The job that it is of."""
        return "tune" if self.study is None else "study"


def plan_trials(job: TuneJob, drawn: Sequence[Mapping[str, Any]] | None = None) -> TunePlan:
    """Draw the trials of a search, and check every one of them.

    Args:
        job: The search.
        drawn: The settings of trials that were drawn before; None to draw them.

    Returns:
        The plan.

    Raises:
        ConfigError: For the first setting that is unknown or wrong, or combination that is impossible.

    Cost: composing a configuration takes about 0.15 s, and there is one for each trial.
    """
    job = _with_contents(job)
    shared = _shared(job)
    if drawn is None:
        space = _space(job)
        drawn = draw_trials(
            with_whole_numbers(space, leaves(_compose(job, shared, _first(space)))), job.num_trials, job.seed
        )
    digits = max(3, len(str(len(drawn) - 1)))
    trials = []
    for number, settings in enumerate(drawn):
        settings = dict(settings)
        trials.append(Trial(f"trial_{number:0{digits}}", settings, _checked(job, shared, settings)))
    common = {**shared, **_given(job)}
    return TunePlan(job, tuple(trials), tuple(to_override(key, value) for key, value in common.items()))


def _with_contents(job: TuneJob) -> TuneJob:
    """The job with what its files say, which may change later."""
    train, space = (read_settings(each) if isinstance(each, str) else each for each in (job.train, job.space))
    return replace(job, train=train, space=space or {})


def _shared(job: TuneJob) -> dict[str, Any]:
    assert not isinstance(job.train, str)
    shared = leaves(job.train or {})
    refuse_own("train", shared)
    return shared


def _space(job: TuneJob) -> Space:
    assert not isinstance(job.space, str)
    space = parse_space(job.space)
    refuse_own("space", space)
    for key in space:
        if key.partition(".")[0] == "tracking":
            raise ConfigError(f"space: {key} cannot differ between the runs of a search: give it in train")
    return space


def refuse_own(where: str, keys: Mapping[str, Any], what: str = "search") -> None:
    """Refuse what a search or a study decides for its runs.

    Raises:
        ConfigError: Naming the first such key and what to give instead.
    """
    for key, instead in _OF_THE_SEARCH.items():
        if key in keys:
            given = instead.replace("the search", f"the {what}")
            raise ConfigError(f"{where}: {key} is decided by the {what}: leave it out, or give {given}")


def _first(space: Space) -> dict[str, Any]:
    return {key: part.values[0] for key, part in space.items() if isinstance(part, Choices)}


def _checked(job: TuneJob, shared: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = _compose(job, shared, settings)
        validate(decode(Config, values))
    except ConfigError as error:
        message = str(error)
        if message.startswith("checkpoint.best_metric="):
            raise ConfigError(message.removeprefix("checkpoint.best_")) from None
        chosen = " ".join(to_override(key, value) for key, value in settings.items())
        raise ConfigError(f"the trial with {chosen} is impossible: {message}") from None
    return values


def _compose(job: TuneJob, shared: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    # A trial's own settings come later: they win over what is shared.
    given = {**shared, **settings, **_given(job)}
    return compose("config", [to_override(key, value) for key, value in given.items()])


def _given(job: TuneJob) -> dict[str, Any]:
    trusted = {"allow_custom_targets": True} if job.allow_custom_targets else {}
    return {"checkpoint.best_metric": job.metric, "report": False, **trusted}
