"""The command line of training."""

import json

import pytest

from inference.training import __main__ as commands
from inference.training.__main__ import main
from tests.training_fakes import small_network, sources

TRAIN = ["--data", "d", "--steps", "3", "--warm-up", "1", "--crops", "64x2", "--threads", "1"]


def test_crops_must_fit_the_strides_of_the_network(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "w.pt", str(tmp_path), "--data", "d", "--steps", "1", "--crops", "100x4"])
    assert "--crops: sides are multiples of 64 pixels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class TestGoingOn:
    """A training goes on by its own recipe, or not at all."""

    @pytest.fixture
    def train(self, tmp_path, monkeypatch):
        """The command on a little network and little pictures; the folder of the training."""
        monkeypatch.setattr(commands, "load_network", lambda start: small_network())
        for name in (
            "load_photographs",
            "draw_scenes",
            "draw_traffic",
            "load_bare_regions",
            "draw_clutter",
        ):
            monkeypatch.setattr(commands, name, lambda *_args, **_options: ())
        monkeypatch.setattr(commands, "Sources", lambda **_parts: sources())
        monkeypatch.setattr(commands.torch, "set_num_threads", lambda count: None)
        monkeypatch.setattr(commands.cv2, "setNumThreads", lambda count: None)

        def train(*changes):
            main(["train", "w.pt", str(tmp_path), "--device", "cpu", *TRAIN, *changes])

        train("--stop", "1")
        return train

    @staticmethod
    def steps(folder):
        return [json.loads(one)["step"] for one in (folder / "log.jsonl").read_text().splitlines()]

    def test_same_recipe_goes_on_to_whatever_step(self, train, tmp_path, capsys):
        train("--stop", "2", "--save-every", "1")
        train()
        assert self.steps(tmp_path) == [1, 2, 3]
        assert "Going on after step 2." in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            (["--steps", "4"], "steps 3 there, 4 here"),
            (["--learning-rate", "0.1"], "learning_rate 0.0005 there, 0.1 here"),
            (["--crops", "64x1"], r"plan.sizes \[\[64, 2\]\] there, \[\[64, 1\]\] here"),
            (["--hold-out", "MOS"], r'hold_out \[\] there, \["MOS"\] here'),
        ],
    )
    def test_other_recipe_is_refused_and_changes_nothing(self, train, tmp_path, changes, told):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit, match=f"by another recipe: {told}. Go on with"):
            train(*changes)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_recipe_from_before_there_was_a_figure_is_read(self, train, tmp_path):
        recipe = json.loads((tmp_path / "recipe.json").read_text())
        del recipe["detail_object_share"]
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"forgotten": 1}))
        train()
        assert self.steps(tmp_path) == [1, 2, 3]

    def test_recipe_that_nothing_was_trained_by_is_no_obstacle(self, train, tmp_path):
        (tmp_path / "checkpoint.pt").unlink()
        train("--steps", "2")
        assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 2
