"""Batch normalisation for another domain: its running statistics, measured on images without labels."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from config.schema import Config
from datasets.samples import EndlessSamples
from engine import processes
from engine.batches import ready
from engine.build import device_of, loader_processes
from engine.forward import forward_batch
from nets.segmenter import Segmenter

BATCHES = 25


@torch.no_grad()
def estimate_statistics(segmenter: Segmenter, stream: EndlessSamples, config: Config) -> None:
    """Replace the running statistics by the mean of those of `BATCHES` batches of a stream, each batch counting alike.

    Source: AdaBN (Li et al., Pattern Recognition 2018).
    """
    segmenter.train()
    norms = [module for module in segmenter.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    loader = loader_processes(config, device_of(config)), config.data.timeout, processes.rank(), processes.size()
    for number, batch in enumerate(stream.batches(config.teacher.batch, 0, BATCHES, *loader), start=1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean so far; with None PyTorch asks the device for the number
        forward_batch(segmenter, ready(batch, device_of(config))["image"], without="features")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
