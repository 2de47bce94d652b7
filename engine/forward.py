"""How a batch passes a network: in the chosen precision, by shares of several processes, in pieces that fit memory.

Every process holds the whole batch and passes its share of it through the network; the outputs are gathered, so that
losses, statistics and discriminators see the whole batch, as in a single process. Backward, each process follows the
gradient of its own share alone, and the gradients of the parameters have to be added up over the processes.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
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
    share = _Share.apply(batch) if count > 1 else batch
    done = [_piece(network, share[i :: mode.pieces], without, mode) for i in range(mode.pieces)]
    return done[0] if mode == PLAIN and count == 1 else _joined(done)


class ForwardBatchDiscriminator(Discriminator):
    """A discriminator whose maps pass by `forward_batch`, as images pass the networks."""

    def forward(self, entropy_map: Tensor) -> Tensor:
        self.require_size(entropy_map)
        return cast(Tensor, forward_batch(self.layers, entropy_map))


def head_weights(segmenter: Segmenter) -> dict[str, list[Tensor]]:
    """Each head's parameters for a loss that all processes compute alike, whose gradients are not added up."""
    once = _Once.apply if processes.size() > 1 else lambda parameter: parameter
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
    return _Whole.apply(whole) if processes.size() > 1 else whole


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


class _Share(torch.autograd.Function):
    """This process's members of a batch; backward, the gradients of all members."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor) -> Tensor:
        return batch[processes.rank() :: processes.size()].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return processes.gather(gradient)


class _Whole(torch.autograd.Function):
    """The batch of which each process has a share; backward, the gradient of this process's share."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        return processes.gather(share)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient[processes.rank() :: processes.size()]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / processes.size()


class _Sum(torch.autograd.Function):
    """A sum over the processes, on which the outputs of all of them depend."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        processes.add_up([total])
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Sum.apply(gradient)


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
    mean = _Sum.apply(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / max(count - 1, 1)).to(running_var.dtype), momentum)
    scaled = centred * torch.rsqrt(variance + eps).view(shape)
    scaled = scaled if weight is None else scaled * weight.view(shape)
    return (scaled if bias is None else scaled + bias.view(shape)).to(x.dtype)
