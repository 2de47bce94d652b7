"""A GPU that is not there: PyTorch's device "meta", whose tensors have a shape and a type, and no numbers.

Tensors on the CPU stay real, so whole stages run, files and all. Fake tensors on "cuda" know devices as well, but
their backward pass asks for a real GPU.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
DEVICE = "meta"
FREE = (aten._has_compatible_shallow_copy_type.default,)  # asks for types alone
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class MixedDevicesError(AssertionError):
    """An operation got tensors of the GPU and of the CPU."""


class DeviceReadError(AssertionError):
    """A number of the GPU was asked for, so that the GPU has to be waited for."""


class PretendGpu(TorchDispatchMode):
    """Within it, "meta" is a GPU: operations refuse a mixture of devices, as those of CUDA do, and numbers are read in
    a `reader` alone. A tensor that is copied to the CPU there is 0, a number that is read by itself is 1.

    Attributes:
        reads: how often each reader has read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = Counter[str]()
        self.by: str | None = None  # the reader at work
        self.known: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        single = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        lists = [value for value in args if isinstance(value, list | tuple)]
        listed = [value for values in lists for value in values if isinstance(value, Tensor)]
        if func in FREE or not any(tensor.is_meta for tensor in (*single, *listed)):
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # operations come as they are written, and not by their parts
            with self:
                if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return result
        if func is aten._local_scalar_dense.default:
            self.read(func)
            return 1
        if func is aten.copy_.default and not args[0].is_meta:
            self.read(func)
            return args[0].zero_()
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or DEVICE).type != DEVICE:
            self.read(func)
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func in INDEXING:
            single, listed = single[:1], []
        together = [*(tensor for tensor in single if tensor.ndim), *listed]  # a single number may be on the CPU
        if func not in COPIES and not all(tensor.is_meta for tensor in together):
            shapes = [tuple(tensor.shape) for tensor in together if not tensor.is_meta]
            raise MixedDevicesError(f"{func} got tensors of the GPU and, of the CPU, {shapes}")
        return self.computed(func, args, kwargs)

    def computed(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operation gives. Its form is remembered, since PyTorch takes a millisecond to find it out."""
        aliases = [result.alias_info for result in func._schema.returns]
        if any(aliases):
            in_place = len(aliases) == 1 and aliases[0].is_write and torch.Tag.inplace_view not in func.tags
            return args[0] if in_place and "out" not in kwargs else func(*args, **kwargs)
        key = func, str(_described([*args, *kwargs.items()]))
        if key not in self.known:
            self.known[key] = tree_map_only(
                Tensor, lambda x: partial(x.new_empty_strided, x.shape, x.stride()), func(*args, **kwargs)
            )
        return tree_map_only(partial, lambda make: make(), self.known[key])

    def read(self, func: object) -> None:
        if self.by is None:
            raise DeviceReadError(f"{func} reads from the GPU, which is waited for")
        self.reads[self.by] += 1

    def reader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that may read, counted under its name."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.by = self.by, function.__name__
            try:
                return function(*args, **kwargs)
            finally:
                self.by = before

        return call


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return [_described(part) for part in value] if isinstance(value, list | tuple) else value
