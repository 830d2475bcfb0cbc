"""How a user of Ultralytics does it today, for the benchmark to compare with.

`YOLO.predict` imports torchvision, which a CPU build of torch may not load, so these are its
steps from Ultralytics' own modules: letterbox, network, suppression, scaling, and for
`save=True` its drawing and its video writer, one frame at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch

from inference.pipeline.torch_network import load_model
from inference.pipeline.types import Image

FOUND_FROM, IOU = 0.25, 0.7  # the defaults of `predict`

Predict = Callable[[Iterable[Image], Path | None], int]


def ultralytics_predict(weights: Path, *, image_size: int, device: str, threads: int) -> Predict:
    """A function that looks at RGB images, writes them drawn as a video if told where, and
    returns how many objects it found.
    """
    module = load_model(weights, None).fuse(verbose=False).eval().to(device)
    # Only here and in torch_network.py: the comparison is with Ultralytics, so it is what runs.
    from ultralytics.data.augment import LetterBox
    from ultralytics.engine.results import Results
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import scale_boxes

    letterbox = LetterBox(image_size, auto=True, stride=32)

    def predict_one(image: Image) -> Results:
        bgr = np.ascontiguousarray(image[..., ::-1])  # what OpenCV's readers give
        fitted = letterbox(image=bgr)
        inputs = np.ascontiguousarray(fitted[..., ::-1].transpose(2, 0, 1)[None])
        with torch.inference_mode():
            raw = module(torch.from_numpy(inputs).to(device).float() / 255)[0]
            found = non_max_suppression(raw, conf_thres=FOUND_FROM, iou_thres=IOU)[0]
            found[:, :4] = scale_boxes(fitted.shape[:2], found[:, :4], bgr.shape[:2])
        return Results(bgr, path="frame.jpg", names=module.names, boxes=found)

    def predict(images: Iterable[Image], save_to: Path | None) -> int:
        torch.set_num_threads(threads)
        found_count, writer = 0, None
        for image in images:
            result = predict_one(image)
            found_count += len(result)
            if save_to is None:
                continue
            drawn = result.plot()
            if writer is None:
                size_wh = drawn.shape[1], drawn.shape[0]
                writer = cv2.VideoWriter(
                    str(save_to), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, size_wh
                )
            writer.write(drawn)
        if writer is not None:
            writer.release()
        return found_count

    return predict
