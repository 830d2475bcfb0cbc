"""The training loop: plain torch, the same on a CPU and a GPU, and able to go on after a kill."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from inference.training.batches import BatchPlan, iter_batches
from inference.training.data import Sources
from inference.training.network import DetectionLoss
from inference.training.superresolution import SuperResolution, focal_error

CHECKPOINT = "checkpoint.pt"

TrainingPrecision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Recipe:
    """All that decides the result, beside the first weights and the data."""

    steps: int
    seed: int = 1
    learning_rate: float = 5e-4
    final_share: float = 0.03  # of the learning rate, at the end of the cosine
    warm_up_steps: int = 40
    weight_decay: float = 0.02
    averaging: float = 0.998
    largest_gradient: float = 20.0
    detail_weight: float = 0.0  # of the super-resolution's error; 0 trains without it
    detail_object_share: float = 0.7
    precision: TrainingPrecision = "fp32"
    plan: BatchPlan = field(default_factory=BatchPlan)


class Trainer:
    """A model on its way: its averaged twin, optimizer and place in the order of batches."""

    def __init__(self, model: Any, recipe: Recipe, folder: Path, device: str | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.step = 0
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.manual_seed(recipe.seed)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.averaged = deepcopy(self.model).requires_grad_(False)
        self.decoder = None
        parameters = dict(self.model.named_parameters())
        if recipe.detail_weight > 0:
            decoder = SuperResolution(self.model).to(self.device, memory_format=torch.channels_last)
            parameters |= {f"decoder.{name}": p for name, p in decoder.named_parameters()}
            self.decoder = decoder
        self.optimizer = _optimizer(parameters, recipe)
        self._loss = DetectionLoss(self.model)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def resume(self) -> bool:
        """Goes back to the last checkpoint of the folder; False when there is none."""
        if not self._checkpoint.is_file():
            return False
        state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.decoder is not None:
            self.decoder.load_state_dict(state["decoder"])
        self.step = state["step"]
        self._forget_steps_after_the_checkpoint()
        return True

    def _forget_steps_after_the_checkpoint(self) -> None:
        """Has the log end where the training goes on, so that it has a line for each step."""
        log = self.folder / "log.jsonl"
        if log.is_file():
            rows = log.read_text().splitlines(keepends=True)
            log.write_text("".join(rows[: self.step]))

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "decoder": self.decoder.state_dict() if self.decoder is not None else None,
            "step": self.step,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def run(self, sources: Sources, *, stop: int | None = None, save_every: int = 50) -> None:
        """Trains up to the step `stop`, the recipe's last by default, and writes a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stop = self.recipe.steps if stop is None else min(stop, self.recipe.steps)
        batches = iter_batches(sources, self.recipe.plan, self.recipe.seed, self.step, stop)
        bar = tqdm(
            total=self.recipe.steps,
            initial=self.step,
            disable=not sys.stderr.isatty(),
            unit="step",
        )
        with bar, (self.folder / "log.jsonl").open("a") as log, contextlib.closing(batches):
            for batch in batches:
                started = time.perf_counter()
                parts = self._train_on(batch)
                self.step += 1
                row = {"step": self.step, **parts, "seconds": time.perf_counter() - started}
                log.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
                log.flush()
                bar.update()
                if self.step % save_every == 0:
                    self.save()
        self.save()

    def _train_on(self, batch: dict[str, Any]) -> dict[str, float]:
        rate = _rate(self.recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs = batch["img"].to(self.device, non_blocking=True).float().div_(255)
        with self._autocast():
            outputs = self.model(inputs)
            rebuilt = None
            if self.decoder is not None:
                rebuilt = self.decoder(inputs[: len(batch["detailed"])])
        parts = self._loss(outputs, batch)
        total = parts.sum()
        logged = dict(zip(("box", "class", "sides"), parts.tolist(), strict=True))
        if rebuilt is not None:
            detailed = batch["detailed"].to(self.device).float().div_(255)
            share = self.recipe.detail_object_share
            error = focal_error(rebuilt, detailed, batch, object_share=share)
            total = total + self.recipe.detail_weight * error
            logged["detail"] = float(error.detach())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]],
            self.recipe.largest_gradient,
        )
        self.optimizer.step()
        self._average()
        return {**logged, "gradient": float(norm), "rate": rate}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        in_bf16 = self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=in_bf16)

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.recipe.averaging, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - keep)
            else:
                value.copy_(current[name])


def _rate(recipe: Recipe, step: int) -> float:
    """Linear from nothing over the warm-up, then half a cosine down to the final share."""
    if step < recipe.warm_up_steps:
        return recipe.learning_rate * (step + 1) / recipe.warm_up_steps
    done = (step - recipe.warm_up_steps) / max(recipe.steps - recipe.warm_up_steps, 1)
    falling = (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * falling)


def _optimizer(parameters: dict[str, torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; the scales and shifts of normalisation and the biases do not decay."""
    trained = [p for p in parameters.values() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
    )


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON holds it, for the log and the model card."""
    described: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return described


class OtherRecipeError(ValueError):
    """The folder holds the checkpoint of a training by another recipe."""


def keep_recipe(folder: Path, described: dict[str, Any]) -> None:
    """Writes `recipe.json`, what decides the result, into the folder of a training.

    Where there is a checkpoint it must be of the same recipe; what only one of them names, because
    it was written before there was such a figure, does not count. Raises OtherRecipeError.
    """
    path = folder / "recipe.json"
    if (folder / CHECKPOINT).is_file() and path.is_file():
        differing = _differing(_read_recipe(path), described)
        if differing:
            raise OtherRecipeError(
                f"{folder} holds a training by another recipe: {', '.join(differing)}. Go on with "
                "its own figures, or take another folder."
            )
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(described, indent=1))
    partial.replace(path)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OtherRecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise OtherRecipeError(f"{path} is no recipe.")
    return stored


def _differing(stored: dict[str, Any], asked: dict[str, Any], within: str = "") -> list[str]:
    """A phrase for each figure of both that is not the same in both."""
    found = []
    for name in stored.keys() & asked.keys():
        one, other = stored[name], asked[name]
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differing(one, other, f"{within}{name}.")
        elif one != other:
            found.append(f"{within}{name} {json.dumps(one)} there, {json.dumps(other)} here")
    return sorted(found)
