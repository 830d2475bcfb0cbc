"""A video long enough that a fault meets its job in the middle, and one that is done at once."""

from pathlib import Path

import pytest

from tests.faults.harness import FRAME_COUNT, SHORT_FRAME_COUNT, draw_street_video


@pytest.fixture(scope="session")
def frame_count() -> int:
    return FRAME_COUNT


@pytest.fixture(scope="session")
def street_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "street.mp4"
    return draw_street_video(path, frame_count=FRAME_COUNT)


@pytest.fixture(scope="session")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    return draw_street_video(path, frame_count=SHORT_FRAME_COUNT)
