"""bf16 is chosen where this processor gains by it, not where it merely has instructions for it."""

from __future__ import annotations

import pytest
import torch

from inference.pipeline import network, processor
from inference.pipeline.network import fast_precisions, load_network
from inference.pipeline.processor import gains_by_bf16
from tests.pipeline_fakes import WEIGHTS


@pytest.fixture(autouse=True)
def measured_anew():
    gains_by_bf16.cache_clear()
    yield
    gains_by_bf16.cache_clear()


def on_a_processor_with(monkeypatch: pytest.MonkeyPatch, *instructions: str, times_s=None) -> None:
    """A processor of these words in /proc/cpuinfo that takes so long in fp32 and in bf16."""

    def measure(*types: torch.dtype) -> dict[torch.dtype, float]:
        assert times_s is not None, "nothing is to be measured here"
        return dict(zip(types, times_s, strict=True))

    monkeypatch.setattr(processor, "_instructions", lambda: {"fpu", "avx2", *instructions})
    monkeypatch.setattr(processor, "_times_of_convolutions", measure)


def test_processor_without_instructions_is_not_even_measured(monkeypatch):
    on_a_processor_with(monkeypatch, "avx512f")
    assert gains_by_bf16() is False


@pytest.mark.parametrize(
    ("instruction", "times_s", "gains"),
    [
        ("avx512_bf16", (0.0055, 0.0031), True),
        ("amx_bf16", (0.0055, 0.0014), True),
        ("bf16", (0.0055, 0.0043), True),
        ("avx512_bf16", (0.0055, 0.0045), False),
        ("avx512_bf16", (0.0055, 0.0107), False),
    ],
)
def test_instructions_count_where_they_are_faster(monkeypatch, instruction, times_s, gains):
    on_a_processor_with(monkeypatch, instruction, times_s=times_s)
    assert gains_by_bf16() is gains


def test_processor_is_measured_once(monkeypatch):
    on_a_processor_with(monkeypatch, "avx512_bf16", times_s=(2.0, 1.0))
    assert gains_by_bf16() is True
    on_a_processor_with(monkeypatch, "avx512_bf16", times_s=(1.0, 2.0))
    assert gains_by_bf16() is True


def test_this_processor_convolves_in_both():
    times_s = processor._times_of_convolutions(torch.float32, torch.bfloat16)
    assert set(times_s) == {torch.float32, torch.bfloat16}
    assert all(0 < one < float("inf") for one in times_s.values())


@pytest.mark.parametrize(("gains", "precision"), [(True, "bf16"), (False, "fp32")])
def test_networks_and_offers_follow(monkeypatch, gains, precision):
    monkeypatch.setattr(network, "gains_by_bf16", lambda: gains)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_network(WEIGHTS).precision == precision
    assert fast_precisions() == (("fp32", "bf16", "int8") if gains else ("fp32", "int8"))
