"""How a batch passes a network: in the chosen precision, by shares of several processes, in pieces that fit memory.

Every process holds the whole batch and passes its share of it through the network; the outputs are gathered, so that
losses, statistics and discriminators see the whole batch, as in a single process. Backward, each process follows the
gradient of its own share alone, and the gradients of the parameters have to be added up over the processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from engine import processes
from nets.discriminator import Discriminator
from nets.segmenter import Segmenter, statistics_held


class ForwardMode(NamedTuple):
    """`dtype`: of the numbers within a network, None for that of its weights. `pieces`: with more than one, activations
    are kept for one piece at a time, and each is computed once more in the backward pass."""

    dtype: torch.dtype | None = None
    pieces: int = 1


PLAIN = ForwardMode()
_MODE = ContextVar("forward_mode", default=PLAIN)


@contextmanager
def forward_mode(mode: ForwardMode) -> Iterator[None]:
    """Within it, `forward_batch` works in this mode."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


def forward_batch(network: nn.Module, batch: Tensor, without: str = "") -> Any:
    """`network(batch)` in the way of `forward_mode`, each process computing its share.

    Args:
        network: gives a tensor, or a named tuple of tensors and None, whose first axis is the batch's.
        batch: (B, ...), the same in all processes; B is a multiple of their number times the number of pieces.
        without: name of a field that nobody looks at, which is None in what is returned.

    Returns:
        What the network gives for the whole batch, in its order; in float32, if anything was chosen or is shared.

    Raises:
        ValueError: B cannot be divided so.
    """
    mode, count = _MODE.get(), processes.size()
    if len(batch) % (count * mode.pieces):
        raise ValueError(f"{len(batch)} images cannot be divided among {count} processes and {mode.pieces} pieces")
    share = _Exchange.apply(batch, _own, processes.gather).contiguous() if count > 1 else batch
    done = [_piece(network, share[i :: mode.pieces], without, mode) for i in range(mode.pieces)]
    return done[0] if mode == PLAIN and count == 1 else _joined(done)


class ForwardBatchDiscriminator(Discriminator):
    """A discriminator whose maps pass by `forward_batch`, as images pass the networks."""

    def forward(self, entropy_map: Tensor) -> Tensor:
        self.require_size(entropy_map)
        return cast(Tensor, forward_batch(self.layers, entropy_map))


def head_weights(segmenter: Segmenter) -> dict[str, list[Tensor]]:
    """Each head's parameters for a loss that all processes compute alike, whose gradients are not added up."""
    count = processes.size()

    def once(parameter: Tensor) -> Tensor:
        return _Exchange.apply(parameter, torch.clone, partial(torch.div, other=count)) if count > 1 else parameter

    return {name: [once(parameter) for parameter in head.parameters()] for name, head in segmenter.heads.items()}


def _piece(network: nn.Module, images: Tensor, without: str, mode: ForwardMode) -> Any:
    def forward(images: Tensor) -> Any:
        with torch.autocast(images.device.type, mode.dtype) if mode.dtype else nullcontext():
            output = network(images)
        return output._replace(**{without: None}) if without else output

    if mode.pieces == 1 or not torch.is_grad_enabled():
        with _whole_statistics():
            return forward(images)
    return checkpoint(
        forward, images, use_reentrant=False, context_fn=lambda: (_whole_statistics(), _repeating(network))
    )


def _joined(pieces: Sequence[Any]) -> Any:
    """The whole batch of the pieces of all shares, whose members alternate; of named tuples, field by field."""
    if not isinstance(pieces[0], Tensor):
        return type(pieces[0])(*(None if of[0] is None else _joined(of) for of in zip(*pieces, strict=True)))
    whole = torch.stack([piece.float() for piece in pieces], 1).flatten(0, 1)
    return _Exchange.apply(whole, processes.gather, _own) if processes.size() > 1 else whole


@contextmanager
def _repeating(network: nn.Module) -> Iterator[None]:
    """A forward that was done before leaves no second trace in the running statistics."""
    counters = [buffer for name, buffer in network.named_buffers() if name.endswith("num_batches_tracked")]
    before = [counter.clone() for counter in counters]
    try:
        with statistics_held(network), _whole_statistics():
            yield
    finally:  # PyTorch leaves it by an exception, as soon as it has all that it needs
        for counter, count in zip(counters, before, strict=True):
            counter.copy_(count)


class _Exchange(torch.autograd.Function):
    """`there(value)` forward and `back(gradient)` backward, where several processes share the work."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradient), None, None


def _own(batch: Tensor) -> Tensor:
    """This process's members of a batch."""
    return batch[processes.rank() :: processes.size()]


def _total(value: Tensor) -> Tensor:
    total = value.clone()
    processes.add_up([total])
    return total


def _sum(value: Tensor) -> Tensor:
    """A sum over the processes, on which the outputs of all of them depend."""
    return _Exchange.apply(value, _total, _sum)


def _whole_statistics() -> AbstractContextManager[Any]:
    """Within it, batch normalisation in train mode uses the statistics of the shares of all processes together."""
    return _WholeBatchNorm() if processes.size() > 1 else nullcontext()


class _WholeBatchNorm(TorchFunctionMode):
    """Takes the place of `F.batch_norm`, by which batch normalisation computes; SyncBatchNorm is for GPUs alone."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over the shares of all processes, which have equal shapes."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    values, count = x.float(), x.numel() // x.shape[1] * processes.size()
    mean = _sum(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _sum(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / max(count - 1, 1)).to(running_var.dtype), momentum)
    scaled = centred * torch.rsqrt(variance + eps).view(shape)
    scaled = scaled if weight is None else scaled * weight.view(shape)
    return (scaled if bias is None else scaled + bias.view(shape)).to(x.dtype)
