"""A counter-based random number generator: every number is a function of its address.

The address is (seed, purpose, example id, restart, step, element). No global generator is read or moved, so the numbers
are the same on any device, in any batch and after any resume. As in Salmon et al., *Parallel random numbers: as easy as
1, 2, 3* (SC 2011), a number is a hash of its address, here by the integer finaliser `triple32` (C. Wellons,
https://nullprogram.com/blog/2018/07/31/). It is meant for sampling, not for cryptography.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import index

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rng:
    """The random numbers of a batch.

    Attributes:
        seed: Any integer.
        ids: The examples' ids in their data set, (B,) int64.
        restart: The restart of an attack, a further coordinate of the address.
        step: The step or epoch, a further coordinate of the address.
    """

    seed: int
    ids: Tensor
    restart: int = 0
    step: int = 0
    _of: tuple[_Shared, range] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, x: Tensor, seed: int = 0) -> Rng:
        """The generator for a batch whose examples have no ids.

        Args:
            x: The batch (B, ...).
            seed: Any integer.

        Returns:
            The generator with ids 0 to B - 1.
        """
        return cls(seed, torch.arange(len(x), device=x.device))

    def at(self, *, restart: int | None = None, step: int | None = None) -> Rng:
        """The generator for the same examples at another restart or step.

        Args:
            restart: The new restart; unchanged if None.
            step: The new step; unchanged if None.

        Returns:
            The generator at this address.
        """
        restart = self.restart if restart is None else restart
        return Rng(self.seed, self.ids, restart, self.step if step is None else step)

    def take(self, index: Tensor | slice) -> Rng:
        """The generator for a part of the batch.

        Args:
            index: Positions (b,), a mask (B,) bool or a slice.

        Returns:
            The generator for these examples.
        """
        of = (self._of[0], self._of[1][index]) if self._of is not None and isinstance(index, slice) else None
        return replace(self, ids=self.ids[index], _of=of)

    def split(self, sizes: Sequence[int]) -> list[Rng]:
        """The generators for consecutive parts of the batch, which draw together.

        The first part that asks for numbers draws them for all parts. A GPU takes about as long for one launch with few
        numbers as for one with many.

        Args:
            sizes: Number of examples in each part. They add up to B.

        Returns:
            The generators, with the numbers of `take`.
        """
        shared, parts, start = _Shared(self), [], 0
        for size in sizes:
            of = (shared, range(start, start + size)) if len(sizes) > 1 else None
            parts.append(replace(self, ids=self.ids[start : start + size], _of=of))
            start += size
        return parts

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform numbers in the open interval (0, 1), with 23 bits.

        Args:
            shape: Shape for each example.
            purpose: Different purposes have independent numbers.

        Returns:
            (B, *shape) float32.
        """
        if self._of is not None:
            shared, at = self._of
            return shared.uniform(shape, purpose)[at.start : at.stop : at.step].clone()
        bits = self._bits(shape, purpose)
        return bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)

    def integers(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Uniform integers from 0 to 65535, in half the time of `uniform`.

        Args:
            shape: Shape for each example.
            purpose: Different purposes have independent numbers.

        Returns:
            (B, *shape) int32.
        """
        size = int(torch.Size(shape).numel())
        halves = self._bits(((size + 1) // 2,), purpose).view(torch.int16)
        return halves[:, :size].int().bitwise_and_(0xFFFF).view(len(self.ids), *shape)

    def normal(self, shape: Sequence[int], purpose: str) -> Tensor:
        """Standard normal numbers, by the inverse of their distribution function, so that |value| < 5.5.

        Args:
            shape: Shape for each example.
            purpose: Different purposes have independent numbers.

        Returns:
            (B, *shape) float32.
        """
        return torch.special.ndtri(self.uniform(shape, purpose))

    def _bits(self, shape: Sequence[int], purpose: str) -> Tensor:
        """(B, *shape) int32 with 32 random bits in each element."""
        size = int(torch.Size(shape).numel())
        salt = _digest(self.seed, purpose, self.restart, self.step)
        # Two independent 32-bit keys per example: two streams collide only if both agree.
        key = _mix((self.ids & 0xFFFFFFFF).int() ^ _signed(salt))
        key = _mix(key ^ (self.ids >> 32).int() ^ _signed(salt >> 32))
        second = _mix(key + _signed(salt >> 64))
        counter = torch.arange(size, device=self.ids.device, dtype=torch.int32)
        bits = counter ^ key[:, None]
        # Mix a few rows at a time, so that they stay in the processor's cache over the fifty passes.
        rows = max(1, _AT_ONCE // max(size, 1)) if bits.device.type == "cpu" else max(1, len(bits))
        scratch = torch.empty_like(bits[:rows])
        for part, more in zip(bits.split(rows), second[:, None].split(rows), strict=True):
            room = scratch[: len(part)]
            _mix_(_mix_(part, room).add_(more), room)
        return bits.view(len(self.ids), *shape)


class _Shared:
    """The uniform numbers of a batch, drawn at the first request of one of its parts."""

    def __init__(self, rng: Rng) -> None:
        self.rng, self.drawn = rng, dict[tuple[tuple[int, ...], str], Tensor]()

    def uniform(self, shape: Sequence[int], purpose: str) -> Tensor:
        key = tuple(shape), purpose
        if key not in self.drawn:
            self.drawn[key] = self.rng.uniform(shape, purpose)
        return self.drawn[key]


_AT_ONCE = 2**18
"""Words that a CPU mixes at once."""


def permutation(n: int, *, seed: int, epoch: int, purpose: str = "order") -> Tensor:
    """The order of examples in an epoch.

    Args:
        n: Number of examples.
        seed: Any integer.
        epoch: The epoch.
        purpose: Different purposes have independent orders.

    Returns:
        (n,) int64, a permutation of 0 to n - 1.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, purpose))
    return torch.randperm(n, generator=generator)


def derived_seed(*address: int | str) -> int:
    """A seed for a library that keeps its own generator.

    Args:
        *address: The seed and the purpose of the numbers.

    Returns:
        An integer in [0, 2**63).
    """
    return _digest(*address) & (2**63 - 1)


def _digest(*address: int | str) -> int:
    # A NumPy integer is the same address as the Python one.
    plain = tuple(part if isinstance(part, str) else index(part) for part in address)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=16).digest(), "little")


def _signed(word: int) -> int:
    """The low 32 bits of a word as an int32."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _word(value: int) -> Tensor:
    """A constant as a tensor. Converting Python integers each time would dominate a small batch."""
    return torch.tensor(_signed(value), dtype=torch.int32, device="cpu")


# int32 shifts are arithmetic in torch, so masks remove the copies of the sign bit.
_ROUNDS = tuple(
    (_word(shift), _word(0xFFFFFFFF >> shift), _word(factor))
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
)
_LAST = _word(14), _word(0xFFFFFFFF >> 14)


def _mix(word: Tensor) -> Tensor:
    """triple32, a bijection of the 32-bit integers with almost no bias. The int32 products wrap as intended."""
    return _mix_(word.clone(), torch.empty_like(word))


def _mix_(word: Tensor, scratch: Tensor) -> Tensor:
    """`_mix` in place, which is several times as fast. `scratch` has the shape of `word`."""
    for shift, mask, factor in _ROUNDS:
        torch.bitwise_right_shift(word, shift, out=scratch)
        word.bitwise_xor_(scratch.bitwise_and_(mask)).mul_(factor)
    shift, mask = _LAST
    torch.bitwise_right_shift(word, shift, out=scratch)
    return word.bitwise_xor_(scratch.bitwise_and_(mask))
