"""A device for tests that behaves like a GPU and computes with the CPU's kernels.

`install()` registers the device `standin` as PyTorch's PrivateUse1 backend, in Python alone. Its tensors are plain
`torch.Tensor`s on that device, with storages that only its kernels read: they look up the host memory behind a storage,
run the CPU's kernel on it and put the result into new storages. The composite operators, autograd and autocast above
the kernels are PyTorch's own, so an operator reaches the device as it would reach a GPU.

What `counting()` counts:

- A kernel is an operator that reaches the device and has work to do: one for each gradient of a convolution, one for a
  foreach operator however many tensors it takes, one more for each boolean mask that becomes indices. Views, empty
  allocations and copies from and to the host are no kernels.
- A wait is where the host needs a result before it can go on: reading a number (`item`, `bool`, `tolist`), copying to
  the host, a host-to-device copy that is not `non_blocking` (as `torch.tensor(..., device=)` makes), an index that lies
  on the host, and shapes that depend on values (`nonzero`, a boolean mask as an index, `unique`).

Both belong to the line of `src/advsphere` that caused them; work of the backward pass belongs to the line that started
it.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import advsphere
from tests.device.autocast import overload, overloads, register_autocast

NAME = "standin"
PACKAGE = str(Path(advsphere.__file__).parent)
DEVICE = torch.device("privateuseone", 0)

_SET = torch.ops.aten.set_.source_Storage_storage_offset._op_dk
# The host reads their results, or needs them for the shape of the output.
_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "equal", "bincount", "repeat_interleave",
}  # fmt: skip
# They take 0-dim tensors of the host beside tensors of the device, as all pointwise operators do.
_TAKE_HOST_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill_"}
_TAKE_HOST_INDICES = {"index", "_index_put_impl_"}
# What the CPU's kernels take and CUDA's refuse, by the tables of `torch.testing` (`dtypesIfCUDA` of OpInfo).
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_REFUSED = {
    (name, dtype)
    for dtypes, names in {
        _INTEGERS: "addmm addmv addbmm baddbmm bmm dot mm mv vdot max_pool2d_with_indices max_pool3d_with_indices",
        (torch.int64,): "avg_pool2d avg_pool3d convolution",
        (torch.uint8,): "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        (torch.float32, torch.float64): "histogram _histogramdd_bin_edges",
    }.items()
    for dtype in dtypes
    for name in names.split()
}
# Composite operators for which a GPU has a kernel of its own, as it has for all foreach operators.
_OF_THE_DEVICE = {"convolution", "convolution_backward", "_fused_rms_norm"}


@dataclass
class Counts:
    """Kernels and waits, and those of each source line as (file:line, operator)."""

    kernels: int = 0
    waits: int = 0
    kernel_lines: Counter[tuple[str, str]] = field(default_factory=Counter)
    wait_lines: Counter[tuple[str, str]] = field(default_factory=Counter)

    def copy(self) -> Counts:
        return Counts(self.kernels, self.waits, self.kernel_lines.copy(), self.wait_lines.copy())

    def kernel(self, name: str, n: int = 1) -> None:
        self.kernels += n
        self.kernel_lines[_line(), name] += n

    def wait(self, name: str, n: int = 1) -> None:
        self.waits += n
        self.wait_lines[_line(), name] += n


_counts = Counts()


def counts() -> Counts:
    """The counts of the innermost `counting` block so far."""
    return _counts


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the kernels and waits of the code inside, apart from those of the code around it."""
    global _counts
    outside, _counts = _counts, Counts()
    try:
        yield _counts
    finally:
        _counts = outside


_by_reciprocals = False


@contextmanager
def dividing_by_reciprocals() -> Iterator[None]:
    """Divide by numbers of the host as CUDA does, which changes the last bit of some results."""
    global _by_reciprocals
    _by_reciprocals = True
    try:
        yield
    finally:
        _by_reciprocals = False


def _line() -> str:
    """The line of the package that runs, as file:line. Backward passes run in a thread of their own."""
    for frame in (sys._getframe(2), sys._current_frames().get(threading.main_thread().ident or 0)):
        at: FrameType | None = frame
        while at is not None:
            if at.f_code.co_filename.startswith(PACKAGE):
                return f"{at.f_code.co_filename[len(PACKAGE) + 1 :]}:{at.f_lineno}"
            at = at.f_back
    return "elsewhere"


def _to_device(host: Tensor) -> Tensor:
    """A tensor of the device that takes over the memory of a tensor of the host."""
    storage = _behind(host.untyped_storage())
    return _placed(torch._C._acc.create_empty_tensor((0,), host.dtype), storage, host)


def _behind(memory: UntypedStorage) -> UntypedStorage:
    """A storage of the device in the memory of one of the host."""
    storage: Any = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), DEVICE, memory.nbytes())
    storage.host = memory  # PyTorch keeps a storage's Python object, so the memory lives as long as the storage
    return storage


def _placed(t: Tensor, storage: UntypedStorage, like: Tensor) -> Tensor:
    return _SET(DispatchKey.CPU, t, storage, like.storage_offset(), like.size(), like.stride())


def _to_host(t: Tensor) -> Tensor:
    """A tensor of the host that shares the memory of a tensor of the device."""
    storage: Any = t.untyped_storage()
    return torch.empty(0, dtype=t.dtype).set_(storage.host, t.storage_offset(), t.size(), t.stride())


def _mixed(name: str, other: torch.device) -> RuntimeError:
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and {other}! "
        f"(when checking an argument of {name})"
    )


def _run(op: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """The kernel of an operator: the CPU's, on the memory behind the arguments."""
    name = _name(op)
    given: dict[int, Tensor] = {}

    def into(t: Tensor) -> Tensor:
        if t.device.type != NAME:
            if not _takes(op, t):
                raise _mixed(name, t.device)
            return t
        host = _to_host(t)
        given[id(host)] = t
        return host

    def out_of(t: Tensor) -> Tensor:
        known = given.get(id(t))
        if known is None:
            return _to_device(t)
        if known.shape != t.shape:  # an output of the caller that has another size now
            _placed(known, _to_device(t).untyped_storage(), t)
        return known

    if args and isinstance(args[0], Tensor) and (name, args[0].dtype) in _REFUSED:
        raise NotImplementedError(f'"{name}" not implemented for {args[0].dtype} on {NAME}')
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    host_args, host_kwargs = _each(into, args), {key: _each(into, value) for key, value in kwargs.items()}
    _count(name, args)
    if _by_reciprocals and name in ("div", "div_") and len(args) == 2 and not kwargs and not _on_device(args[1]):
        op, host_args = _multiplication(op, *host_args)
    try:
        result = op(*host_args, **host_kwargs)
    except RuntimeError as error:
        if "Unable to cast" not in str(error):
            raise
        result = op.overloadpacket(*host_args, **host_kwargs)  # a number reaches the overload for tensors
    return _each(out_of, result)


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _multiplication(op: OpOverload, t: Tensor, divisor: Any) -> tuple[OpOverload, tuple[Tensor, Tensor]]:
    """CUDA's kernel of a division by a number of the host: it multiplies by the reciprocal."""
    kind = torch.float64 if t.dtype == torch.float64 else torch.float32
    return overload(f"{_name(op).replace('div', 'mul')}.Tensor"), (t, torch.tensor(1.0, dtype=kind) / divisor)


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value of an operator with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_each(change, item) for item in value) if isinstance(value, list | tuple) else value


@cache
def _name(op: OpOverload) -> str:
    return op._schema.name.removeprefix("aten::")


def _takes(op: OpOverload, t: Tensor) -> bool:
    """Whether an operator of the device takes this tensor of the host."""
    name = _name(op)
    if name in _TAKE_HOST_INDICES:
        return True
    return t.dim() == 0 and (torch.Tag.pointwise in op.tags or name in _TAKE_HOST_NUMBERS)


def _has_a_kernel(name: str) -> bool:
    """Whether a GPU has a kernel for an operator that PyTorch would otherwise compose of others."""
    if name == "index.Tensor":  # its own check in C++ turns masks into indices, as on a GPU
        return False
    structured = torch._C._dispatch_has_kernel_for_dispatch_key(
        f"aten::{name}", "CompositeExplicitAutogradNonFunctional"
    )
    return structured or name.startswith("_foreach_") or name in _OF_THE_DEVICE


def _count(name: str, args: tuple[Any, ...]) -> None:
    if name == "convolution_backward":
        _counts.kernel(name, sum(args[-1]))
        return
    if name == "_index_put_impl_":  # reading by an index has made these copies before it comes here
        indices = [i for i in args[1] if i is not None]
        for _ in (i for i in indices if i.device.type != NAME):
            _counts.wait("copy from the host")
        masks = sum(i.dtype in (torch.bool, torch.uint8) for i in indices)
        if masks and not (len(indices) == 1 and args[2].numel() == 1):  # one number fills the mask
            _counts.kernel("nonzero", masks)
            _counts.wait("nonzero", masks)
    if name in _WAITS:
        _counts.wait(name)
    if name != "_local_scalar_dense":
        _counts.kernel(name)


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return _to_device(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return _to_device(torch.empty_strided(size, stride, dtype=dtype))


def _copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if to.device.type != NAME:
        _counts.wait("copy to the host")
        to.copy_(_to_host(source))
    elif source.device.type != NAME:
        if not non_blocking:
            _counts.wait("copy from the host")
        _to_host(to).copy_(source)
    else:
        _counts.kernel("copy_")
        _to_host(to).copy_(_to_host(source))
    return to


def _resize(t: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    if math.prod(size) * t.element_size() > t.untyped_storage().nbytes():
        new = _empty(size, dtype=t.dtype)
        return _placed(t, new.untyped_storage(), new)
    return _placed(t, t.untyped_storage(), torch.empty(size, device="meta"))


def _rms_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], rstd: Tensor, weight: Tensor | None, mask: list[bool]
) -> tuple[Tensor, None]:
    """A kernel of GPUs that the CPU has not."""
    assert weight is None and mask == [True, False]
    _counts.kernel("_fused_rms_norm_backward")
    grad, x, rstd = _to_host(grad), _to_host(x), _to_host(rstd)
    unit = x * rstd
    return _to_device(rstd * (grad - unit * (grad * unit).mean(-1, keepdim=True))), None


class _Module:
    """What PyTorch looks for under `torch.standin`."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """The kernels draw from the host's generator, which `torch.manual_seed` has seeded."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self) -> None:
        _counts.wait("synchronize")


_VIEWS = (
    "as_strided", "_reshape_alias", "view", "unfold", "view_as_real", "view_as_complex", "set_.source_Tensor",
    "set_.source_Storage_storage_offset",
)  # fmt: skip
_KERNELS = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "copy_": _copy,
    "resize_": _resize,
    "_fused_rms_norm_backward": _rms_norm_backward,
}
_libraries: list[torch.library.Library] = []


def install() -> torch.device:
    """Register the device in this process, if that was not done before."""
    if _libraries:
        return DEVICE
    _setup_privateuseone_for_python_backend(NAME, _Module())
    every, library = (torch.library.Library(namespace, "IMPL") for namespace in ("_", "aten"))
    _libraries.extend([every, library, *register_autocast()])
    every.fallback(_run, "PrivateUse1")
    for name, op in overloads():
        if _has_a_kernel(name):
            library.impl(name, partial(_run, op), "PrivateUse1")
    for name in _VIEWS:
        # The CPU's kernels of views make another tensor of the same storage, whatever its device.
        library.impl(name, partial(overload(name)._op_dk, DispatchKey.CPU), "PrivateUse1")
    for name, kernel in _KERNELS.items():
        library.impl(name, kernel, "PrivateUse1")
    clone = UntypedStorage.clone
    # `copy.deepcopy` of a tensor takes its storage from the allocator in C++, and a backend in Python has none.
    storage_class: Any = UntypedStorage
    storage_class.clone = lambda s: _behind(s.host.clone()) if s.device.type == NAME else clone(s)
    return DEVICE
