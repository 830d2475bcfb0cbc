"""A grown network computes what the small one did, and its copies do not stay copies."""

import pytest
import torch

from inference.training.grow import _spread, joined, transfer, widened
from tests.training_fakes import small_network


def outputs(model, inputs):
    model.eval()
    model.model[-1].training = True  # logits and distances as they are
    with torch.no_grad():
        raw = model(inputs)
    return raw["scores"], raw["boxes"]


@pytest.fixture(scope="module")
def grown():
    """A small network with statistics of its own, and a wider and deeper one that came of it."""
    small, large = small_network(0.125, 0.33), small_network(0.1875, 0.67)
    small.train()
    with torch.no_grad():
        for name, value in small.named_parameters():
            if "bn.weight" in name:  # louder than at first, so that a fault is heard at the end
                value.uniform_(1, 4)
        for _ in range(2):
            small(torch.rand(2, 3, 64, 64))
    transfer(small, large)
    return small, large


def test_a_grown_network_computes_the_function_of_the_small_one(grown):
    inputs = torch.rand(1, 3, 96, 128)
    for one, other in zip(outputs(grown[0], inputs), outputs(grown[1], inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
        assert other.std() > 0.01


def test_a_grown_network_is_wider_and_deeper(grown):
    channels = [model.model[4].cv2.conv.out_channels for model in grown]
    depths = [len(model.model[4].m) for model in grown]
    assert (channels, depths) == ([32, 48], [2, 4])


def test_copies_of_a_channel_are_read_with_different_shares():
    torch.manual_seed(0)
    origins = torch.tensor([0, 1, 1])
    spread = _spread(torch.ones(4, 2, 1, 1), origins, torch.arange(4))[:, :, 0, 0]
    torch.testing.assert_close(spread[:, 0], torch.ones(4))
    torch.testing.assert_close(spread[:, 1] + spread[:, 2], torch.ones(4))
    assert len(set(spread[:, 1].tolist())) == 4


def test_channels_that_copy_none_are_not_read_at_first():
    spread = _spread(torch.ones(2, 1, 3, 3), torch.tensor([0, -1]), torch.arange(2))
    assert spread[:, 1].abs().max() == 0
    assert (spread[:, 0] == 1).all()


def test_origins_of_joined_maps_are_shifted_past_each_other():
    first, second = torch.tensor([0, 1, 0]), torch.tensor([0, -1])
    assert joined([first, second], [2, 1]).tolist() == [0, 1, 0, 2, -1]


def test_a_layer_is_not_widened_beyond_copies_of_itself():
    assert sorted(widened(4, 6).tolist()[:4]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="4 channels cannot become 9"):
        widened(4, 9)


def test_only_a_smaller_yolov8_can_grow(grown):
    with pytest.raises(ValueError, match="cannot become"):
        transfer(grown[1], grown[0])
