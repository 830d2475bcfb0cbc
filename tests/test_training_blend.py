"""Weights between those of two networks, and weights that move as those of another did."""

import pytest
import torch

from inference.training.data import CLASS_NAMES
from inference.training.network import blended, shifted
from tests.training_fakes import small_network


def test_every_weight_lies_where_the_share_says():
    first, second = small_network(0.125, 0.33), small_network(0.125, 0.33)
    with torch.no_grad():
        for value in first.parameters():
            value.fill_(1.0)
        for value in second.parameters():
            value.fill_(2.0)
    between = blended(first, second, 0.25)
    assert {float(value.detach().unique()) for value in between.parameters()} == {1.25}
    assert {float(value.detach().unique()) for value in first.parameters()} == {1.0}
    assert {float(value.detach().unique()) for value in second.parameters()} == {2.0}


def test_the_ends_are_the_networks_themselves():
    first, second = small_network(0.125, 0.33), small_network(0.125, 0.33)
    for share, end in ((0, first), (1, second)):
        state = blended(first, second, share).state_dict()
        for name, value in end.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(state[name], value)


def test_networks_of_different_shapes_or_a_senseless_share_are_refused():
    narrow, wide = small_network(0.125, 0.33), small_network(0.1875, 0.33)
    with pytest.raises(ValueError, match="different shapes"):
        blended(narrow, wide, 0.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        blended(narrow, narrow, 1.5)


def test_networks_that_name_their_classes_in_another_order_are_not_mixed():
    """Their shapes are the same, so a bus would become half a car without a word."""
    one, other = small_network(), small_network()
    other.names = dict(enumerate(reversed(CLASS_NAMES)))
    told = "different classes: car, truck, bus, minibus, and minibus, bus, truck, car"
    with pytest.raises(ValueError, match=told):
        blended(one, other, 0.5)
    for networks in ((one, other, one), (one, one, other)):
        with pytest.raises(ValueError, match=told):
            shifted(*networks)


def filled(value, width=0.125):
    network = small_network(width, 0.33)
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(value)
    return network


def test_a_network_moves_as_another_did_by_the_share():
    model = filled(5.0)
    moved = shifted(model, filled(1.0), filled(3.0), 0.5)
    assert {float(value.detach().unique()) for value in moved.parameters()} == {6.0}
    assert {float(value.detach().unique()) for value in model.parameters()} == {5.0}


def test_variances_stay_above_nothing_when_a_network_moves():
    model, before, after = filled(1.0), filled(1.0), filled(1.0)
    for norm in (one for one in after.modules() if isinstance(one, torch.nn.BatchNorm2d)):
        norm.running_var.fill_(0.25)
    moved = shifted(model, before, after, 2.0)
    norms = [one for one in moved.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert norms
    for one in norms:
        assert float(one.running_var.unique()) == pytest.approx(one.eps)


def test_networks_of_different_shapes_do_not_move_each_other():
    with pytest.raises(ValueError, match="different shapes"):
        shifted(filled(1.0), filled(1.0), filled(1.0, 0.1875))
