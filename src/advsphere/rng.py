"""Addressed randomness: every draw is a function of (seed, purpose, example id, restart, step, element).

Nothing here reads or moves a global generator, so a draw is the same on any device, in any batch and after any resume.
The generator is counter based, in the manner of Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (SC 2011):
a hash of the address, with the integer finaliser `triple32` (C. Wellons, https://nullprogram.com/blog/2018/07/31/).
It is meant for sampling, not for secrets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rng:
    """Where a batch's randomness comes from.

    seed: any integer. ids: (B,) int64, the examples' ids in their data set. restart, step: further coordinates of the
    address.
    """

    seed: int
    ids: Tensor
    restart: int = 0
    step: int = 0

    @classmethod
    def of(cls, x: Tensor, seed: int = 0) -> Rng:
        """Draws for a batch without ids of its own: (B, ...) gets the ids 0..B-1."""
        return cls(seed, torch.arange(len(x), device=x.device))

    def at(self, *, restart: int | None = None, step: int | None = None) -> Rng:
        """The same examples at another restart or step."""
        return replace(
            self, restart=self.restart if restart is None else restart, step=self.step if step is None else step
        )

    def take(self, index: Tensor | slice) -> Rng:
        """The draws of a part of the batch; index: (b,) positions, (B,) bool or a slice."""
        return replace(self, ids=self.ids[index])

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape) float32, uniform in the open interval (0, 1) with 23 bits; `purpose` keeps uses apart."""
        bits = self._bits(shape, purpose)
        return bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)

    def integers(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape) int32, uniform in 0..65535; two from each word of bits, so in half the time of `uniform`."""
        size = int(torch.Size(shape).numel())
        halves = self._bits(((size + 1) // 2,), purpose).view(torch.int16)
        return halves[:, :size].int().bitwise_and_(0xFFFF).view(len(self.ids), *shape)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape) float32, standard normal (|value| < 5.5, by the inverse of its distribution function)."""
        return torch.special.ndtri(self.uniform(shape, purpose))

    def _bits(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape) int32 with 32 random bits in each element."""
        size = int(torch.Size(shape).numel())
        salt = _digest(self.seed, purpose, self.restart, self.step)
        # Two independent 32-bit keys for each example: collisions between two streams need both to agree.
        key = _mix((self.ids & 0xFFFFFFFF).int() ^ _signed(salt))
        key = _mix(key ^ (self.ids >> 32).int() ^ _signed(salt >> 32))
        second = _mix(key + _signed(salt >> 64))
        counter = torch.arange(size, device=self.ids.device, dtype=torch.int32)
        bits = counter ^ key[:, None]
        # Some rows at a time, which stay in a processor's cache over the fifty passes that mixing makes.
        rows = max(1, _AT_ONCE // max(size, 1)) if bits.device.type == "cpu" else max(1, len(bits))
        scratch = torch.empty_like(bits[:rows])
        for part, more in zip(bits.split(rows), second[:, None].split(rows), strict=True):
            room = scratch[: len(part)]
            _mix_(_mix_(part, room).add_(more), room)
        return bits.view(len(self.ids), *shape)


_AT_ONCE = 2**18
"""Words that a CPU mixes together, for each thread."""


def permutation(n: int, *, seed: int, epoch: int, purpose: str = "order") -> Tensor:
    """(n,) int64: the order of n examples in an epoch, a function of its arguments alone."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, purpose))
    return torch.randperm(n, generator=generator)


def derived_seed(*address: int | str) -> int:
    """A seed in [0, 2**63) for a library that keeps a generator of its own (initialisation, dropout)."""
    return _digest(*address) & (2**63 - 1)


def _digest(*address: int | str) -> int:
    # A NumPy integer is the same address as the Python one.
    plain = tuple(part if isinstance(part, str) else index(part) for part in address)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=16).digest(), "little")


def _signed(word: int) -> int:
    """The low 32 bits of a word, as the int32 that has them."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _word(value: int) -> Tensor:
    """A constant of the type that it is used with: converting Python's numbers is most of the time of a small batch."""
    return torch.tensor(_signed(value), dtype=torch.int32, device="cpu")


# int32 shifts are arithmetic in torch, so the copies of the sign bit have to be masked away.
_ROUNDS = tuple(
    (_word(shift), _word(0xFFFFFFFF >> shift), _word(factor))
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
)
_LAST = _word(14), _word(0xFFFFFFFF >> 14)


def _mix(word: Tensor) -> Tensor:
    """A bijection of the 32-bit integers with almost no bias (triple32); int32 products wrap, as they must."""
    return _mix_(word.clone(), torch.empty_like(word))


def _mix_(word: Tensor, scratch: Tensor) -> Tensor:
    """`_mix` in place: new memory for every operation would take several times as long. scratch: of the same shape."""
    for shift, mask, factor in _ROUNDS:
        torch.bitwise_right_shift(word, shift, out=scratch)
        word.bitwise_xor_(scratch.bitwise_and_(mask)).mul_(factor)
    shift, mask = _LAST
    torch.bitwise_right_shift(word, shift, out=scratch)
    return word.bitwise_xor_(scratch.bitwise_and_(mask))
