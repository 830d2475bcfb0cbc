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
        full["feats"] = outputs["feats"]
        _, parts, _ = self._loss.get_assigned_targets_and_loss(full, batch)
        return parts


def mean_network(models: Sequence[Any]) -> Any:
    """The first of `models` with the mean of all their weights and statistics.

    Of use for models that were trained on from one origin; raises KeyError or RuntimeError for
    networks of different plans.
    """
    states = [model.state_dict() for model in models]
    means = {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    models[0].load_state_dict(means)
    return models[0]


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
