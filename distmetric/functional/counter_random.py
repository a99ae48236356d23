"""Random numbers that are hashes of (seed, step, id, draw): no state, no order, the same bits on every device.

What is drawn for a row then does not depend on which process draws it, nor on what was drawn before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def uniform(seed: int, step: int, ids: Tensor, draws: int, first: int = 0) -> Tensor:
    """Random numbers that are a function of (seed, step, id, number of the draw) and of nothing else.

    Args:
        seed: Any integer.
        step: Any integer.
        ids: (B,) int64.
        draws: Numbers wanted per id; the first ones do not change with it.
        first: Number of the first draw.

    Returns:
        (B, draws) float64 in [0, 1), multiples of 2^-53, bit-equal on every device.

    Cost: one 64-bit hash each.

    Source: the mixer of SplitMix64 (Steele, Lea and Flood 2014), a counter-based generator.
    """
    return _shift_right(hashes(seed, step, ids, draws, first), 11).double().mul_(2.0**-53)


def hashes(seed: int, step: int, ids: Tensor, count: int, first: int = 0) -> Tensor:
    """(B, count) int64 hashes, for the draws from number `first` on."""
    key = _mix_number(_mix_number(seed & _MASK) ^ _mix_number((step + _GOLDEN) & _MASK))
    streams = _mix_(
        ids.mul(_signed(_GOLDEN)).add_(_signed(key))
    )  # a number from the host, which nobody waits for
    return derived(streams[:, None], torch.arange(first + 1, first + 1 + count, device=ids.device))


def derived(keys: Tensor, numbers: Tensor) -> Tensor:
    """Hashes of (key, number), int64 as both are, which are keys again; the two are broadcast."""
    return _mix_(keys + numbers.mul(_signed(_GOLDEN)))


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, in place; multiplication wraps around."""
    z.bitwise_xor_(_shift_right(z, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(0x94D049BB133111EB))
    return z.bitwise_xor_(_shift_right(z, 31))


def _mix_number(z: int) -> int:
    """The same for one unsigned number."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own would copy the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z
