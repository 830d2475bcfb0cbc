"""The command line of training."""

import pytest

from inference.training.__main__ import main


def test_crops_must_fit_the_strides_of_the_network(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "w.pt", str(tmp_path), "--data", "d", "--steps", "1", "--crops", "100x4"])
    assert "--crops: sides are multiples of 64 pixels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
