"""Focal super-resolution: a decoder that exists during training only.

From two early maps of the backbone it rebuilds the crop at twice the size of the network's
input, so that these maps keep what tells a few pixels of vehicle from a few pixels of road. The
error counts most where the vehicles are. After Zhang et al., SuperYOLO, 2023, with the weighting
of regions added; at inference there is no trace of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# The layers of a YOLOv8 that the decoder reads: the C2f blocks at strides 4 and 8.
_LAYERS = _FINE_LAYER, _COARSE_LAYER = 2, 4
_FINE_STRIDE = 4


class SuperResolution(nn.Module):
    """Rebuilds (n, 3, 2h, 2w) from the maps of an input (n, 3, h, w); values from 0 to 1.

    The decoder hears the model through hooks, which `close` removes.
    """

    def __init__(self, model: Any, *, width: int = 48) -> None:
        super().__init__()
        fine = model.model[_FINE_LAYER].cv2.conv.out_channels
        coarse = model.model[_COARSE_LAYER].cv2.conv.out_channels
        self.fine = nn.Conv2d(fine, width, 1)
        self.coarse = nn.Conv2d(coarse, width, 1)
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 3 * (2 * _FINE_STRIDE) ** 2, 3, padding=1),
            nn.PixelShuffle(2 * _FINE_STRIDE),
        )
        self._maps: dict[int, torch.Tensor] = {}
        self._hooks = [
            model.model[layer].register_forward_hook(self._keeper(layer)) for layer in _LAYERS
        ]

    def _keeper(self, layer: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._maps[layer] = output

        return keep

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The detailed pictures of `inputs` (n, 3, h, w), the first that the model just saw."""
        fine, coarse = (self._maps.pop(layer)[: len(inputs)] for layer in _LAYERS)
        raised = functional.interpolate(self.coarse(coarse), scale_factor=2.0, mode="nearest")
        details = self.body(self.fine(fine) + raised)
        # What interpolation gives for nothing need not be learnt.
        smooth = functional.interpolate(
            inputs, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return smooth + details

    def close(self) -> None:
        """Leaves the model as it was before."""
        for hook in self._hooks:
            hook.remove()


def focal_error(
    rebuilt: torch.Tensor, detailed: torch.Tensor, batch: dict[str, Any], *, object_share: float
) -> torch.Tensor:
    """The mean absolute error of which `object_share` comes from within the vehicles' boxes.

    `rebuilt` and `detailed`: (n, 3, h, w), values from 0 to 1.
    """
    mask = object_mask(batch, rebuilt.shape[0], rebuilt.shape[2], rebuilt.shape[3])
    mask = mask.to(rebuilt.device)
    error = (rebuilt.float() - detailed).abs().mean(dim=1)
    within = (error * mask).sum() / mask.sum().clamp(min=1)
    elsewhere = (error * (1 - mask)).sum() / (1 - mask).sum().clamp(min=1)
    return object_share * within + (1 - object_share) * elsewhere


def object_mask(batch: dict[str, Any], count: int, height: int, width: int) -> torch.Tensor:
    """(count, height, width): 1 within a box of the first crops and 0 elsewhere."""
    mask = torch.zeros(count, height, width)
    scale = torch.tensor([width, height], dtype=torch.float32)
    centres, sizes = batch["bboxes"][:, :2] * scale, batch["bboxes"][:, 2:] * scale
    starts = (centres - sizes / 2).floor().long().clamp(min=0).tolist()
    ends = (centres + sizes / 2).ceil().long().tolist()
    owners = batch["batch_idx"].long().tolist()
    for owner, (left, top), (right, bottom) in zip(owners, starts, ends, strict=True):
        if owner < count:
            mask[owner, top:bottom, left:right] = 1
    return mask
