"""What an evaluation looks like: a table for the terminal, JSON for programs, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from inference.evaluation.data import LabelledData
from inference.evaluation.evaluate import Evaluation
from inference.evaluation.metrics import Figures

ROWS = (
    ("AP50", "ap_50"),
    ("AP50-95", "ap"),
    ("AP75", "ap_75"),
    ("AP small", "ap_small"),
    ("AP medium", "ap_medium"),
    ("AP large", "ap_large"),
    ("AR, 100 detections", "recall_100"),
    ("AR, 500 detections", "recall_500"),
    ("recall at IoU 0.5", "recall_50"),
    ("precision at recall 0.8", "precision_at_recall_80"),
)
# Colours that people with any kind of colour vision tell apart (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINE_STYLES = ("-", "--", ":")


def left_out(data: LabelledData) -> list[str]:
    """A sentence for each kind of box that is not measured."""
    lines = [f"Left out: {count} of {name}." for name, count in data.left_out.items()]
    if data.empty_box_count:
        lines.append(f"Left out: boxes without an area, {data.empty_box_count} of them.")
    if data.repeated_box_count:
        lines.append(f"Left out: boxes written twice, {data.repeated_box_count} of them.")
    return lines


def table(evaluations: Sequence[Evaluation]) -> str:
    """The figures side by side: for each evaluation without and with regard to classes."""
    heads = [("", [""] + ["any class", "by class"] * len(evaluations))]
    names = ["", *(part for one in evaluations for part in (f"tiling {one.name}", ""))]
    body = []
    for label, member in ROWS:
        cells = [label]
        for one in evaluations:
            cells += [
                share(getattr(one.scores.class_agnostic, member)),
                share(getattr(one.scores.mean_over_classes, member)),
            ]
        body.append(cells)
    classes = ["", *(part for one in evaluations for part in ("AP50", "AP50-95"))]
    by_class = []
    for name in dict.fromkeys(name for one in evaluations for name in one.scores.by_class):
        cells = [name]
        for one in evaluations:
            figures = one.scores.by_class[name]
            cells += [share(figures.ap_50), share(figures.ap)]
        by_class.append(cells)
    return _aligned([names, heads[0][1], *body, [""], classes, *by_class])


def share(value: float | None) -> str:
    """A share with three decimals, or a dash where there is nothing to measure it on."""
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    width = max(len(row[0]) for row in rows)
    return "\n".join(
        (row[0].ljust(width) + "".join(cell.rjust(12) for cell in row[1:])).rstrip() for row in rows
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as a JSON object; None where there was nothing to measure."""
    scores = evaluation.scores
    agnostic_100, mean_100 = scores.as_coco_counts
    return {
        "tiling": evaluation.name,
        "seconds": round(evaluation.seconds, 3),
        "class_agnostic": asdict(scores.class_agnostic),
        "mean_over_classes": asdict(scores.mean_over_classes),
        "by_class": {name: asdict(figures) for name, figures in scores.by_class.items()},
        "at_100_detections": {
            "class_agnostic": asdict(agnostic_100),
            "mean_over_classes": asdict(mean_100),
        },
    }


def draw_curves(evaluations: Sequence[Evaluation], target: Path, *, title: str) -> None:
    """Precision over recall at an overlap of 0.5: without and with regard to classes.

    As WebP where `target` is called so, else as PNG. A colour for each class, a line style for
    each evaluation. Raises OSError.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    agnostic, by_class = figure.subplots(1, 2, sharey=True)
    recalls = np.linspace(0, 1, 101)
    class_names = list(dict.fromkeys(n for one in evaluations for n in one.scores.by_class))
    for position, one in enumerate(evaluations):
        style = _LINE_STYLES[position % len(_LINE_STYLES)]
        figures = one.scores.class_agnostic
        agnostic.plot(
            recalls,
            one.scores.curves[""],
            style,
            color=_COLOURS[position % len(_COLOURS)],
            label=f"tiling {one.name} ({_aps(figures)})",
        )
        for number, name in enumerate(class_names):
            by_class.plot(
                recalls,
                one.scores.curves[name],
                style,
                color=_COLOURS[number % len(_COLOURS)],
                label=f"{name}, tiling {one.name} ({_aps(one.scores.by_class[name])})",
            )
    for axes, name in ((agnostic, "any class"), (by_class, "by class")):
        axes.set(title=name, xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="lower left", fontsize="small")
    agnostic.set_ylabel("precision at IoU 0.5")
    picture_format = "webp" if target.suffix == ".webp" else "png"
    figure.savefig(target, format=picture_format, dpi=120)


def _aps(figures: Figures) -> str:
    return f"AP50 {share(figures.ap_50)}, AP50-95 {share(figures.ap)}"
