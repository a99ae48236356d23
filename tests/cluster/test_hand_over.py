"""Handing over from the training thread: bounded, counted, copied at once, and waiting is seen when there is some."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from distmetric.cluster.hand_over import HandOver, HostCopy
from distmetric.cluster.weights import pack_weights, unpack_weights


def test_what_does_not_fit_is_dropped_and_not_even_made() -> None:
    queue = HandOver[int](2)
    assert [queue.offer(lambda: 1), queue.offer(lambda: 2)] == [True, True]
    assert not queue.offer(lambda: pytest.fail("made in vain"))
    assert (len(queue), queue.dropped) == (2, 1)
    assert [queue.take(), queue.take()] == [1, 2]
    assert queue.offer(lambda: 4)
    assert (queue.take(), queue.dropped, queue.wait_seconds) == (4, 1, 0.0)


def test_the_consumer_gets_everything_in_order_and_is_let_go_at_the_end() -> None:
    queue = HandOver[int](10_000)
    found: list[int] = []

    def consume() -> None:
        while (item := queue.take()) is not None:
            found.append(item)

    consumer = threading.Thread(target=consume)
    consumer.start()
    for number in range(5000):
        assert queue.offer(lambda number=number: number)
    while len(queue):
        time.sleep(0.001)
    queue.close()
    consumer.join(10)
    assert not consumer.is_alive()
    assert found == list(range(5000))
    assert not queue.offer(lambda: 1), "nobody would take it"
    assert queue.take() is None


def test_waiting_is_measured() -> None:
    queue = HandOver[int](5)
    held = threading.Event()

    def hold() -> None:
        with queue._lock:
            held.set()
            time.sleep(0.1)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert queue.offer(lambda: 1)
    holder.join()
    assert queue.wait_seconds > 0.01


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_copies_are_what_was_there_when_they_were_begun(device) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    tensor = torch.arange(12.0, device=device).reshape(3, 4).requires_grad_()
    copy = HostCopy({"a": tensor, "b": tensor[:, 1]})
    with torch.no_grad():
        tensor.zero_()
    found = copy.wait()
    assert found["a"].tolist() == torch.arange(12.0).reshape(3, 4).tolist()
    assert found["b"].tolist() == [1.0, 5.0, 9.0]
    assert all(one.device.type == "cpu" and not one.requires_grad for one in found.values())
    assert HostCopy({}).wait() == {}


def test_weights_come_back_bit_by_bit() -> None:
    weights = {
        "float": torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.randn(7).bfloat16(),
        "double": torch.tensor([[float("nan"), -0.0]], dtype=torch.float64),
        "count": torch.tensor(41),
        "empty": torch.empty(0, 4),
        "flag": torch.tensor([True, False]),
    }
    packed = pack_weights(weights)
    for values, _, _ in packed.values():
        values.flags.writeable = False  # as Ray gives them
    found = unpack_weights(packed)
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(torch.nan_to_num(found[name]), torch.nan_to_num(tensor))
        found[name].zero_()  # may be written to
