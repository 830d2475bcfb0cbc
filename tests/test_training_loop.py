"""Training goes on where it was cut off, and leaves nothing of itself in the weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from inference.pipeline.network import load_detector
from inference.pipeline.torch_network import load_model
from inference.training.batches import BatchPlan, make_batch
from inference.training.loop import Recipe, Trainer
from inference.training.network import DetectionLoss, save_network
from inference.training.superresolution import SuperResolution, focal_error, object_mask
from tests.training_fakes import small_network, sources

PLAN = BatchPlan(sizes=((64, 2),), detailed_share=0.5)
RECIPE = Recipe(steps=4, warm_up_steps=1, detail_weight=1.0, plan=PLAN)


def trainer(folder):
    return Trainer(small_network(), RECIPE, folder, "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps without interruption."""
    whole = trainer(tmp_path_factory.mktemp("whole"))
    whole.run(sources())
    return whole


def same_weights(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_cut_in_two_gives_the_weights_of_one_without_interruption(trained, tmp_path):
    trainer(tmp_path).run(sources(), stop=2)
    resumed = trainer(tmp_path)
    assert resumed.resume()
    assert resumed.step == 2
    resumed.run(sources())
    assert same_weights(resumed.model, trained.model)
    assert same_weights(resumed.averaged, trained.averaged)
    assert same_weights(resumed.decoder, trained.decoder)


def test_run_that_was_killed_behind_its_checkpoint_has_a_line_for_each_step(trained, tmp_path):
    trainer(tmp_path).run(sources(), stop=2)
    with (tmp_path / "log.jsonl").open("a") as log:  # two steps that were not saved, one half
        log.write('{"step": 3}\n{"step": 4}\n{"ste')
    resumed = trainer(tmp_path)
    assert resumed.resume()
    resumed.run(sources())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, resumed.step + 1))
    assert losses(resumed) == losses(trained)


def test_two_runs_from_one_seed_are_the_same_and_another_seed_gives_others(trained, tmp_path):
    again = trainer(tmp_path / "again")
    again.run(sources())
    assert same_weights(again.model, trained.model)
    assert same_weights(again.averaged, trained.averaged)
    assert losses(again) == losses(trained)
    other = Trainer(small_network(), replace(RECIPE, seed=2), tmp_path / "other", "cpu")
    other.run(sources())
    assert not same_weights(other.averaged, trained.averaged)


def losses(run):
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_training_moves_the_weights_and_their_average_follows(trained):
    start = small_network()
    assert not same_weights(trained.model, start)
    assert not same_weights(trained.averaged, trained.model)


def test_every_step_is_logged(trained):
    rows = [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert {"box", "class", "sides", "detail", "gradient", "rate", "seconds"} <= set(rows[0])


def test_the_learning_rate_ends_at_its_final_share(trained):
    rows = [json.loads(line) for line in (trained.folder / "log.jsonl").read_text().splitlines()]
    rates = [row["rate"] for row in rows]
    assert rates[0] == pytest.approx(RECIPE.learning_rate)
    assert rates == sorted(rates, reverse=True)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert not trainer(tmp_path).resume()


def test_saved_weights_hold_a_plain_network_in_half_precision(trained, tmp_path):
    path = tmp_path / "weights.pt"
    save_network(trained.averaged, path, note="four steps")
    written = torch.load(path, weights_only=False)
    assert set(written) == {"model", "date", "description"}
    model = written["model"]
    assert {value.dtype for value in model.state_dict().values()} <= {torch.half, torch.int64}
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(isinstance(module, SuperResolution) for module in model.modules())
    assert [name for name in model.state_dict() if "decoder" in name] == []
    count = sum(value.numel() for value in model.parameters())
    assert path.stat().st_size < 2.2 * count
    assert b"/home" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()


def test_saved_weights_are_what_the_service_loads(trained, tmp_path):
    path = tmp_path / "weights.pt"
    save_network(trained.averaged, path, note="")
    assert load_detector(path, device="cpu").class_names == ("car", "truck", "bus", "minibus")
    loaded = load_model(path, None).state_dict()
    for name, value in trained.averaged.state_dict().items():
        torch.testing.assert_close(loaded[name], value.half().to(value.dtype))


def test_the_decoder_rebuilds_twice_the_input_and_leaves_no_hooks():
    model = small_network()
    decoder = SuperResolution(model, width=8)
    inputs = torch.rand(2, 3, 64, 96)
    before = model.eval()(inputs)[0]
    assert decoder(inputs).shape == (2, 3, 128, 192)
    decoder.close()
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(inputs)[0], before)


def test_the_error_counts_most_within_the_vehicles():
    batch = {"bboxes": torch.tensor([[0.25, 0.5, 0.5, 1.0]]), "batch_idx": torch.tensor([0.0])}
    assert object_mask(batch, 1, 4, 8)[0].tolist() == [[1.0] * 4 + [0.0] * 4] * 4
    within, elsewhere = torch.zeros(1, 3, 4, 8), torch.zeros(1, 3, 4, 8)
    within[..., :4], elsewhere[..., 4:] = 1, 1
    nothing = torch.zeros(1, 3, 4, 8)
    errors = [focal_error(one, nothing, batch, object_share=0.7) for one in (within, elsewhere)]
    assert [round(float(error), 6) for error in errors] == [0.7, 0.3]


def test_a_batch_without_any_vehicle_has_a_loss():
    batch = make_batch(sources(), PLAN, 1, 0)
    batch |= {"bboxes": torch.zeros(0, 4), "cls": torch.zeros(0, 1), "batch_idx": torch.zeros(0)}
    model = small_network().train()
    parts = DetectionLoss(model)(model(batch["img"].float() / 255), batch)
    assert parts[0] == 0 and parts[2] == 0 and parts[1] > 0


def test_loss_far_from_the_edge_is_the_same_whatever_precision_the_network_ran_in():
    """Beyond 1024 pixels the centre of a fine cell, such as 130.5, is none of bf16's numbers."""
    batch = {
        "bboxes": torch.tensor([[0.97, 0.5, 0.02, 0.25]]),
        "cls": torch.zeros(1, 1),
        "batch_idx": torch.zeros(1),
    }
    model = small_network().train()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 64, 1088, generator=torch.Generator().manual_seed(1)))
        loss = DetectionLoss(model)
        expected = loss(outputs, batch)
        in_bf16 = {**outputs, "feats": [one.bfloat16() for one in outputs["feats"]]}
        assert torch.equal(loss(in_bf16, batch), expected)
    assert expected[0] > 0
