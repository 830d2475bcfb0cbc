"""Makes the int8 twin of a weights file, which OpenVINO runs on CPUs.

    python -m inference.training.quantize WEIGHTS FOLDER --data FOLDER

Post-training quantisation: the graph that the service itself makes of the weights is run on
crops of photographs and on drawn streets, and the range of each activation is noted. The heads'
last convolutions stay as they are, because a box's sides and a class's confidence need the
precision that eight bits do not give.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.pipeline.openvino_network import graph_of, write_twin
from inference.pipeline.torch_network import load_model
from inference.training.augment import Mix, draw_sample
from inference.training.data import Sources, draw_scenes, load_bare_regions, load_photographs

_INPUT_PIXELS = 640
_SCENE_SEEDS = range(3_000_000, 3_000_016)
_VEHICLE_COUNTS = (10, 24)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the twin is written")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=120, help="how many to calibrate with")
    options = parser.parse_args(arguments)
    sources = Sources(
        photographs=load_photographs(options.data / "aerial_vehicles"),
        scenes=draw_scenes(_SCENE_SEEDS, _VEHICLE_COUNTS),
        backgrounds=load_bare_regions(options.data / "original_samples"),
    )
    quantize(options.weights, options.folder, sources, crop_count=options.crops)


def quantize(
    weights: Path, folder: Path, sources: Sources, *, crop_count: int, size: int = _INPUT_PIXELS
) -> Path:
    """Writes NAME.int8.xml and .bin into `folder`; returns the path of the former.

    Raises WeightsError for weights that cannot be read.
    """
    import nncf  # from requirements-train.txt: the service runs without it

    model = load_model(weights, None)
    graph = graph_of(model)
    dataset: Any = nncf.Dataset(list(calibration_inputs(sources, crop_count, size)))
    kept = nncf.IgnoredScope(patterns=[last_convolutions(len(model.model))], validate=False)
    twin = nncf.quantize(
        graph,
        dataset,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=kept,
        subset_size=crop_count,
    )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return write_twin(twin, weights, digest, folder)


def last_convolutions(layer_count: int) -> str:
    """A pattern of the graph's nodes that stay as they are, for a network of so many layers.

    The head is the last layer; its nodes' names carry its place in the list.
    """
    return rf".*model\.{layer_count - 1}\..*(cv2|cv3)\.\d\.2\b.*"


def calibration_inputs(
    sources: Sources, count: int, size: int, seed: int = 0
) -> Iterator[npt.NDArray[np.uint8]]:
    """Inputs as the service lays them out, uint8 (1, size, size, 3)."""
    mix = Mix(mosaics=0.0, any_angle=0.0, markings=0.0)
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        yield draw_sample(rng, sources, size, mix).image[None]


if __name__ == "__main__":
    main()
