"""Graphs of many shapes: compiled once each, no lane waits for a shape that it does not want."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from inference.pipeline import openvino_network
from inference.pipeline.openvino_network import OpenVinoNetwork

WIDE, HIGH, SQUARE = (1, 32, 64, 3), (1, 64, 32, 3), (1, 64, 64, 3)


def network(*, lanes: int = 2) -> OpenVinoNetwork:
    """One whose outputs are its input, twice, with a thousand weights added."""
    pictures = ops.parameter([-1, -1, -1, 3], ov.Type.u8)
    numbers = ops.convert(pictures, "f32")
    weight = ops.constant(np.full((1000,), 0.001, np.float32))
    total = ops.add(numbers, ops.reduce_sum(weight, ops.constant([0]), keep_dims=False))
    graph = ov.Model([total, total], [pictures], "sum")
    return OpenVinoNetwork(graph, class_names=("car",), sha256="", precision="fp32", threads=lanes)


def run(net: OpenVinoNetwork, shape: tuple[int, ...]) -> float:
    with net.run_network(np.full(shape, 7, np.uint8)) as (first, _):
        assert first.shape == shape
        return float(first.max())


def test_each_shape_is_compiled_once(monkeypatch):
    net, compiled = network(), []
    compile_one = net._compile
    monkeypatch.setattr(net, "_compile", lambda shape: compiled.append(shape) or compile_one(shape))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shape: run(net, shape), [WIDE, HIGH] * 8))
    assert found == pytest.approx([8.0] * 16)
    assert sorted(compiled) == [WIDE, HIGH]


def test_lane_whose_shape_is_there_does_not_wait_for_another_shape(monkeypatch):
    net = network()
    run(net, WIDE)
    may_go_on, is_compiling = threading.Event(), threading.Event()
    compile_one = net._compile

    def slowly(shape):
        is_compiling.set()
        assert may_go_on.wait(30)
        return compile_one(shape)

    monkeypatch.setattr(net, "_compile", slowly)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run, net, HIGH)
        assert is_compiling.wait(30)
        assert run(net, WIDE) == pytest.approx(8.0)  # would hang here
        assert not other.done()
        may_go_on.set()
        assert other.result() == pytest.approx(8.0)


def test_shape_that_could_not_be_compiled_is_tried_again(monkeypatch):
    net = network()
    with monkeypatch.context() as broken:
        broken.setattr(net, "_compile", lambda shape: (_ for _ in ()).throw(RuntimeError("no")))
        with pytest.raises(RuntimeError, match="no"):
            run(net, WIDE)
    assert run(net, WIDE) == pytest.approx(8.0)


def test_idlest_shape_goes_when_the_memory_is_used_up(monkeypatch):
    net = network()
    room = net.held_bytes(WIDE) + net.held_bytes(SQUARE)
    monkeypatch.setattr(openvino_network, "_COMPILED_BYTES", room)
    for shape in (WIDE, HIGH, WIDE, SQUARE):
        run(net, shape)
    assert list(net._compiled) == [WIDE, SQUARE]


def test_a_photograph_and_its_tiles_stay_however_large(monkeypatch):
    monkeypatch.setattr(openvino_network, "_COMPILED_BYTES", 1)
    net = network()
    for shape in (SQUARE, WIDE, HIGH):
        run(net, shape)
    assert list(net._compiled) == [WIDE, HIGH]


def test_weights_and_the_maps_of_every_lane_take_memory():
    weights, pixel = 4 * 1001, 2 * 3 * 4  # two maps of three channels of float32
    assert network(lanes=1).held_bytes(WIDE) == weights + pixel * 32 * 64
    assert network(lanes=3).held_bytes((4, 32, 64, 3)) == weights + 3 * 4 * pixel * 32 * 64
