"""The training loop: what one worker does in one step, where ranks talk, and where the clock goes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from distmetric.distributed.gather import joint_batch
from distmetric.distributed.parallel import average_gradients
from distmetric.training.optimizer import clip_gradients, learning_rate_factor, set_learning_rate
from distmetric.training.worker import Worker


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the best checkpoint, the last step, the best evaluation, and why it ended early if it did."""

    checkpoint: str
    step: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    stopped: str = ""


def train(worker: Worker) -> TrainResult:
    """Train from where the worker stands to the last step, evaluating and saving on the way.

    Ranks talk in five places of a step: the moments of norms over the joint batch (the head's, and all with
    norm=sync_batch), the gather of embeddings (backward: reduce-scatter), a few numbers of the loss (with sharded
    classes of each row, and of the gradient), the mean of gradients (DDP's, or one after all chunks), and, every
    `log_every` steps, the measurements; and where a sampler plans rounds from the neighbor index, before each of them,
    to agree on the snapshot. Labels and ids of all ranks are known from the plan. Nobody waits for the index: `plan`
    takes the snapshot that is there, `share` leaves embeddings for a thread to send. Nor does the host wait for a GPU
    between two logs. Only rank 0 writes, but for sharded classes, of which everyone writes its own. During a
    step the hosts exchange one number: whether anybody was asked to stop.
    """
    started, config, clock = time.monotonic(), worker.config, worker.ledger
    worker.embedder.train()
    worker.catch_up()
    for step in range(worker.step, config.train.steps):
        if worker.heed():
            break
        with clock("plan"):
            worker.plan(step)
        with clock("data"):
            batch = worker.batches.get(step)
            images = worker.model.images(batch, step)
        worker.steps.hold()
        with clock("forward"):
            embeddings, logits = worker.model.forward(images)
        with clock("index"):
            worker.share(step, batch, embeddings)
        with clock("gather"):
            joint = joint_batch(embeddings, batch.rows, worker.replica, logits)
        with clock("loss"):
            worker.steps.settle()
            worker.criterion.set_step(step)
            loss, active = worker.criterion.joint(joint)
        with clock("backward"):
            worker.optimizer.zero_grad(set_to_none=True)
            worker.model.backward(loss)
            average_gradients([*worker.model.not_averaged, *worker.criterion.parameters()], worker.replica)
        with clock("optimizer"):
            factor = learning_rate_factor(config.schedule, step, config.train.steps)
            set_learning_rate(worker.optimizer, factor)
            rate = config.optim.lr * factor
            norm = clip_gradients(worker.trained_parameters, config.optim.clip_norm, worker.replica)
            worker.steps.take(step, joint, loss, norm, rate)
        worker.monitor.observe(
            step, joint, loss, active, norm, rate, clock.close_step(), worker.criterion.metrics()
        )
        worker.after_step(step + 1)
    best = worker.finish()
    seconds, stopped = time.monotonic() - started, worker.wishes.stopped
    return TrainResult(best.location, worker.step, seconds, dict(best.metrics), stopped)
