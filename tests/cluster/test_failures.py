"""Workers that fail: the first real cause is told, what may pass is tried again, and what cannot is not."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from distmetric.cluster.failures import (
    FailureJudge,
    LostPeerError,
    WorkerFailedError,
    cause_of,
    told_failures,
)
from distmetric.config.schema import TrainerConfig
from distmetric.errors import InputError, NonFiniteError, ResourceError

LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:59805")
DIED = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError())


def told(error: Exception, step: int = 7) -> Exception:
    with pytest.raises(Exception) as found, told_failures(lambda: step):  # noqa: PT011
        raise error
    return found.value


def bug(step: int = 7) -> WorkerFailedError:
    found = told(ZeroDivisionError("division by zero"), step)
    assert isinstance(found, WorkerFailedError)
    return found


def judged(judge: FailureJudge, *failures: Exception | None) -> Exception | None:
    """What ends the training, of failures by rank; None where it may be tried again."""
    try:
        judge.after_exception(None, {rank: error for rank, error in enumerate(failures) if error})
    except ControllerError as error:
        return error.controller_failure
    return None


def test_what_a_worker_fails_with_survives_the_way_to_the_driver() -> None:
    found = pickle.loads(pickle.dumps(bug()))
    assert (found.kind, found.step) == ("ZeroDivisionError", 7)
    assert str(found).startswith("a worker failed at step 7:\nTraceback (most recent call last):\n")
    assert str(found).count("Traceback") == 1
    assert "ZeroDivisionError: division by zero" in str(found)
    assert "before the first step" in str(bug(-1))
    mistake = InputError("images/7.png is truncated")
    assert told(mistake) is mistake
    assert isinstance(told(LOST), LostPeerError)


def test_a_mistake_on_one_rank_ends_the_training_whatever_the_others_see() -> None:
    mistake = InputError("images/7.png is truncated")
    assert judged(FailureJudge(), None, mistake) is mistake
    assert judged(FailureJudge(), told(LOST), DIED, mistake) is mistake
    assert judged(FailureJudge(), bug(), NonFiniteError("nan"), mistake).args == ("nan",)


def test_a_bug_is_tried_once_more_and_not_again_if_it_comes_back_at_the_same_step() -> None:
    judge = FailureJudge()
    assert judged(judge, bug(3), told(LOST)) is None
    assert judged(judge, bug(5)) is None
    again = bug(3)
    assert judged(judge, told(LOST), again) is again


def test_workers_that_are_lost_and_reads_that_fail_are_never_a_bug() -> None:
    judge = FailureJudge()
    for _ in range(3):
        assert judged(judge, told(LOST), DIED) is None
        assert judged(judge, told(LOST), None) is None
        assert judged(judge, told(OSError("input/output error"))) is None


def test_the_driver_tells_the_first_real_cause() -> None:
    trainer, found = TrainerConfig(max_failures=3), bug()
    mistake = InputError("images/7.png is truncated")
    assert cause_of(ControllerError(mistake), trainer, "runs/a") is mistake
    assert cause_of(ControllerError(found), trainer, "runs/a") is found
    lost = told(LOST)
    assert cause_of(WorkerGroupError("", {0: lost, 1: found}), trainer, "runs/a") is found
    too_often = cause_of(WorkerGroupError("", {0: lost, 1: DIED}), trainer, "runs/a")
    assert isinstance(too_often, ResourceError)
    assert "trainer.max_failures=3" in str(too_often)
    assert "ActorDiedError" in str(too_often)
    assert "resume=runs/a" in str(too_often)
    assert len(str(too_often).splitlines()) == 1
    other = ValueError("of Ray's own")
    assert cause_of(other, trainer, "runs/a") is other
