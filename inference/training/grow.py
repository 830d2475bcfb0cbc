"""Grows a trained YOLOv8s into a YOLOv8m that computes the same function, to be trained on.

After Chen et al., Net2Net, 2016. A layer becomes wider by copies of its channels; whoever reads
them divides the weight of a channel among its copies. The shares are random and differ for every
reader, so that the copies are pulled apart by training: with equal shares they would stay equal.
C2f blocks become deeper by bottlenecks whose columns in the last convolution begin at zero.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from inference.training.network import new_network

_MEDIUM = "m"
_LEAST_SHARE = 0.25  # before the shares of a channel's copies are made to sum to one

# Which channel of the small network each channel of the large one copies; -1 copies none.
Origins: TypeAlias = torch.Tensor


def grow(small: Any, *, seed: int = 1) -> Any:
    """A YOLOv8m with the classes of the YOLOv8s `small` and, at first, its very outputs.

    Raises ValueError when `small` is not built as a YOLOv8 that is smaller in each layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        large = new_network(_MEDIUM, [small.names[index] for index in range(len(small.names))])
        transfer(small, large)
    return large


def transfer(small: Any, large: Any) -> None:
    """Makes `large`, a wider and deeper network of the same plan, compute what `small` does."""
    grower = _Grower()
    known: list[Origins] = []
    latest = torch.arange(3)  # red, green and blue
    for one, other in zip(small.model, large.model, strict=True):
        kind = type(one).__name__
        inputs = [
            latest if index == -1 else known[index]
            for index in ([one.f] if isinstance(one.f, int) else one.f)
        ]
        if kind == "Conv":
            latest = grower.convolution(one, other, inputs[0])
        elif kind == "C2f":
            latest = grower.block(one, other, inputs[0])
        elif kind == "SPPF":
            latest = grower.pooling(one, other, inputs[0])
        elif kind == "Concat":
            sizes = [int(origins.max()) + 1 for origins in inputs]
            latest = joined(inputs, sizes)
        elif kind == "Upsample":
            latest = inputs[0]
        elif kind == "Detect":
            grower.detection(one, other, inputs)
        else:
            raise ValueError(f"A layer of the kind {kind} is not known in a YOLOv8.")
        known.append(latest)


def joined(origins: list[Origins], sizes: list[int]) -> Origins:
    """The origins of maps laid one after the other, which had `sizes` channels in the small one."""
    parts, start = [], 0
    for part, size in zip(origins, sizes, strict=True):
        parts.append(torch.where(part < 0, part, part + start))
        start += size
    return torch.cat(parts)


class _Grower:
    """Copies weights layer by layer; each method returns the origins of the layer's output."""

    def convolution(
        self, small: Any, large: Any, inputs: Origins, outputs: Origins | None = None
    ) -> Origins:
        """A convolution, its normalisation and its activation."""
        if outputs is None:
            outputs = widened(small.conv.out_channels, large.conv.out_channels)
        with torch.no_grad():
            large.conv.weight.copy_(_spread(small.conv.weight, inputs, outputs))
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(large.bn, name).copy_(getattr(small.bn, name)[outputs])
        large.bn.eps, large.bn.momentum = small.bn.eps, small.bn.momentum
        return outputs

    def block(self, small: Any, large: Any, inputs: Origins) -> Origins:
        """A C2f: a part that is passed on, a part that goes through a chain of bottlenecks."""
        passed, chained = widened(small.c, large.c), widened(small.c, large.c)
        self.convolution(small.cv1, large.cv1, inputs, joined([passed, chained], [small.c] * 2))
        for one, other in zip(small.m, large.m, strict=False):
            inner = self.convolution(one.cv1, other.cv1, chained)
            # What is added to the block's input has that input's order of channels.
            self.convolution(one.cv2, other.cv2, inner, chained)
        read = joined([passed, *[chained] * (1 + len(small.m))], [small.c] * (2 + len(small.m)))
        unread = torch.full((large.c * (len(large.m) - len(small.m)),), -1)
        return self.convolution(small.cv2, large.cv2, torch.cat((read, unread)))

    def pooling(self, small: Any, large: Any, inputs: Origins) -> Origins:
        """Maps pooled over ever larger regions, side by side."""
        inner = self.convolution(small.cv1, large.cv1, inputs)
        count, size = small.n + 1, small.cv1.conv.out_channels
        return self.convolution(small.cv2, large.cv2, joined([inner] * count, [size] * count))

    def detection(self, small: Any, large: Any, inputs: list[Origins]) -> None:
        """The two heads of each stride, whose last convolutions keep their outputs."""
        for heads in ("cv2", "cv3"):
            branches = zip(getattr(small, heads), getattr(large, heads), inputs, strict=True)
            for one, other, origins in branches:
                inner = self.convolution(one[0], other[0], origins)
                inner = self.convolution(one[1], other[1], inner)
                self._last(one[2], other[2], inner)

    def _last(self, small: nn.Conv2d, large: nn.Conv2d, inputs: Origins) -> None:
        with torch.no_grad():
            outputs = torch.arange(small.out_channels)
            large.weight.copy_(_spread(small.weight, inputs, outputs))
            large.bias.copy_(small.bias)


def widened(small: int, large: int) -> Origins:
    """All channels of the small layer once, then as many of them again as the large one has more.

    Raises ValueError when the large one has fewer, or more than twice as many.
    """
    if not small <= large <= 2 * small:
        raise ValueError(f"{small} channels cannot become {large} by copies.")
    return torch.cat((torch.arange(small), torch.randperm(small)[: large - small]))


def _spread(weight: torch.Tensor, inputs: Origins, outputs: Origins) -> torch.Tensor:
    """Weights (outputs, inputs, h, w) of which the shares of each copied input sum to the whole."""
    read = inputs >= 0
    shares = torch.zeros(len(outputs), len(inputs))
    shares[:, read] = _LEAST_SHARE + torch.rand(len(outputs), int(read.sum()))
    sums = torch.zeros(len(outputs), weight.shape[1]).index_add_(1, inputs[read], shares[:, read])
    shares[:, read] /= sums[:, inputs[read]]
    return weight[outputs][:, inputs.clamp(min=0)] * shares[:, :, None, None]
