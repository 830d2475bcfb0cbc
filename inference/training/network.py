"""The network as training sees it: Ultralytics' module, its loss, and plain checkpoints."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from inference.pipeline.torch_network import load_model, ultralytics_kept_quiet
from inference.training.data import CLASS_NAMES

# Weights of the loss's parts, as usual for YOLOv8: place, class, distribution of the sides.
_GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


def load_network(weights: Path) -> Any:
    """The detection model of a checkpoint in full precision, every weight trainable.

    Raises WeightsError as the service's own loading does.
    """
    model = load_model(weights, None)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    # The bins' positions are a constant in the shape of a convolution.
    for parameter in model.model[-1].dfl.parameters():
        parameter.requires_grad_(False)
    return model


def new_network(scale: str, class_names: Sequence[str] = CLASS_NAMES) -> Any:
    """A YOLOv8 of the scale n, s, m, l or x with random weights."""
    with ultralytics_kept_quiet(None):
        from ultralytics.nn.tasks import DetectionModel  # heavy, and configured by environment

    model = DetectionModel(f"yolov8{scale}.yaml", nc=len(class_names), verbose=False)
    model.names = dict(enumerate(class_names))
    for parameter in model.model[-1].dfl.parameters():
        parameter.requires_grad_(False)
    return model


class DetectionLoss:
    """Ultralytics' loss in full precision, whatever precision the network ran in."""

    def __init__(self, model: nn.Module) -> None:
        with ultralytics_kept_quiet(None):
            from ultralytics.utils.loss import v8DetectionLoss  # heavy

        kept = getattr(model, "args", None)
        model.args = SimpleNamespace(**_GAINS)
        self._loss = v8DetectionLoss(model)
        model.args = kept

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> torch.Tensor:
        """The three parts (3,): box, class and distribution, means over the batch's boxes."""
        full = {name: outputs[name].float() for name in ("boxes", "scores")}
        # Of these it takes height and width, and the type for the cells' centres: in bf16 those
        # beyond the 128th cell, 1024 pixels from the edge, would lie half a cell off.
        full["feats"] = [one[:1, :1].float() for one in outputs["feats"]]
        _, parts, _ = self._loss.get_assigned_targets_and_loss(full, batch)
        return parts


def blended(first: Any, second: Any, share: float) -> Any:
    """A network whose weights lie between those of two others, `share` of the way to `second`.

    Weights that were trained further from `first` forget some of what it knew; the way between
    often knows more than either end: Wortsman et al., Robust fine-tuning of zero-shot models,
    2022. Raises ValueError for a share outside [0, 1], or for networks of different shapes or
    classes.
    """
    if not 0 <= share <= 1:
        raise ValueError("share must lie from 0 to 1")
    _check_classes(first, second)
    ends = first.state_dict(), second.state_dict()
    _check_shapes(*ends)
    between = deepcopy(second)
    between.load_state_dict(
        {
            name: value.lerp(ends[1][name], share) if value.is_floating_point() else ends[1][name]
            for name, value in ends[0].items()
        }
    )
    return between


def shifted(model: Any, before: Any, after: Any, share: float = 1.0) -> Any:
    """A network that has also learned what one of the same origin has between two states.

    Its weights are those of `model` and `share` of the way from `before` to `after`: Ilharco et
    al., Editing models with task arithmetic, 2023. Raises ValueError for different shapes or
    classes.
    """
    _check_classes(model, before, after)
    state, old, new = (one.state_dict() for one in (model, before, after))
    _check_shapes(state, old, new)
    moved = deepcopy(model)
    moved.load_state_dict(
        {
            name: value + share * (new[name] - old[name]) if value.is_floating_point() else value
            for name, value in state.items()
        }
    )
    for module in moved.modules():
        if isinstance(module, nn.BatchNorm2d):  # a sum of variances may fall below nothing
            module.running_var.clamp_(min=module.eps)
    return moved


def _check_classes(*models: Any) -> None:
    """The same number of classes in another order fits by its shape, and would be mixed up."""
    first, *others = ([one.names[index] for index in range(len(one.names))] for one in models)
    for other in others:
        if other != first:
            raise ValueError(
                f"the networks have different classes: {', '.join(first)}, and {', '.join(other)}"
            )


def _check_shapes(*states: dict[str, torch.Tensor]) -> None:
    first, *others = ({name: value.shape for name, value in one.items()} for one in states)
    if any(other != first for other in others):
        raise ValueError("the networks have different shapes")


def save_network(model: Any, path: Path, *, note: str) -> None:
    """Writes `model` in half precision as the service reads it, and nothing beside it.

    No optimizer, no second copy, no settings of the machine. The model given stays as it is.
    """
    plain = deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    plain.args = {}
    plain.yaml_file = ""
    if isinstance(plain.yaml, dict):
        plain.yaml["yaml_file"] = ""
    plain.criterion = None
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    written = {"model": plain.eval().half(), "date": date, "description": note}
    partial = path.with_suffix(".partial")
    torch.save(written, partial)
    partial.replace(path)
