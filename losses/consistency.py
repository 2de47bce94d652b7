"""Agreement between the two heads of one network."""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["logits", "prob", "kl"]


def consistency(logits_aux: Tensor, logits_main: Tensor, form: Form = "logits", valid: Tensor | None = None) -> Tensor:
    """Mean disagreement of the two heads over the valid pixels, with gradient to both.

    Forms, of which the first is the feature consistency loss of ASDA and the others are alternatives of this project:
        `logits`: squared difference of the scores, averaged over classes. It also punishes a shift that is common to
            all classes of a pixel, which no prediction depends on.
        `prob`: squared difference of the softmax, averaged over classes.
        `kl`: half the sum of the two Kullback-Leibler divergences, in nats.

    Args:
        logits_aux, logits_main: scores of the heads, (B, K, H, W).
        valid: True where a pixel counts, (B, H, W) bool; None for all.

    Returns:
        A scalar >= 0; exactly 0, and still connected to the graph, when no pixel is valid.

    Raises:
        ValueError: the shapes differ or the form is unknown.
    """
    if logits_aux.shape != logits_main.shape:
        raise ValueError(f"heads differ in shape: aux {tuple(logits_aux.shape)}, main {tuple(logits_main.shape)}")
    if valid is None:
        valid = torch.ones_like(logits_main[:, 0], dtype=torch.bool)
    # Cleared before the formula and not after it: an overflow at an ignored pixel would turn its zero into NaN.
    aux, main = (logits.masked_fill(~valid[:, None], 0.0) for logits in (logits_aux, logits_main))
    if form == "logits":
        gap = (aux - main).square().mean(1)  # (B, H, W), 0 where not valid
    elif form == "prob":
        gap = (aux.softmax(1) - main.softmax(1)).square().mean(1)
    elif form == "kl":
        log_aux, log_main = aux.log_softmax(1), main.log_softmax(1)
        gap = 0.5 * ((log_aux.exp() - log_main.exp()) * (log_aux - log_main)).sum(1)
    else:
        raise ValueError(f"unknown consistency form {form!r}; choose logits, prob or kl")
    return gap.sum() / valid.sum().clamp(min=1)
