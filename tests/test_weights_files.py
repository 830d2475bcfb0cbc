"""Files of weights are read without running what they bring."""

import copy
import pickle
import re
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inference.pipeline.errors import WeightsError
from inference.pipeline.network import load_network
from inference.pipeline.weights_file import WeightsFacts
from inference.pipeline.weights_reader import read_weights
from tests.weights_makers import (
    CELLS,
    CLASSES,
    IMAGE_SIZE,
    Evil,
    EvilByExec,
    export_onnx,
    onnx_model,
    tiny_model,
    write_checkpoint,
    write_evil_pickle,
    write_onnx,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def refusal(path, tmp_path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        read_weights(path, config_dir=tmp_path / "ultralytics")
    return error.value


def test_checkpoint_tells_its_classes(model, tmp_path):
    path = write_checkpoint(tmp_path / "model.pt", model)
    facts = read_weights(path, config_dir=tmp_path)
    count = sum(one.numel() for one in model.parameters())
    assert facts == WeightsFacts("pt", CLASSES, None, count)
    assert WeightsFacts.from_dict(facts.to_dict()) == facts


def test_checkpoint_with_a_damaged_part_is_refused(model, tmp_path):
    """Its weights would be read as they are, and find something else."""
    path = write_checkpoint(tmp_path / "model.pt", model)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda one: one.file_size)
        part = archive.read(largest)
    content = path.read_bytes()
    assert content.count(part) == 1
    path.write_bytes(content.replace(part, bytes(len(part))))
    error = refusal(path, tmp_path)
    assert (error.code, error.detail) == ("weights_unreadable", "The checkpoint is damaged.")


def test_checkpoint_whose_parts_are_encrypted_is_refused(model, tmp_path):
    path = write_checkpoint(tmp_path / "model.pt", model)
    content = bytearray(path.read_bytes())
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        content[at + flags_at] |= 1
    path.write_bytes(content)
    error = refusal(path, tmp_path)
    assert (error.code, error.detail) == ("weights_unreadable", "The file is no sound checkpoint.")


class TestNamesThatUltralyticsKnows:
    """The file that is named is the one that is read; left to itself, Ultralytics takes others."""

    def test_checkpoint_called_yolov5n_is_not_the_one_called_yolov5nu_beside_it(
        self, model, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        write_checkpoint(Path("yolov5n.pt"), model)
        other = copy.deepcopy(model)
        other.names = {0: "cat", 1: "dog"}
        write_checkpoint(Path("yolov5nu.pt"), other)
        facts = read_weights(Path("yolov5n.pt"), config_dir=tmp_path)
        assert facts.class_names == CLASSES

    def test_folder_may_have_an_apostrophe_in_its_name(self, model, tmp_path):
        for folder, names in (("Ann's", CLASSES), ("Anns", ("cat", "dog"))):
            (tmp_path / folder).mkdir()
            one = copy.deepcopy(model)
            one.names = dict(enumerate(names))
            write_checkpoint(tmp_path / folder / "best.pt", one)
        facts = read_weights(tmp_path / "Ann's/best.pt", config_dir=tmp_path)
        assert facts.class_names == CLASSES

    def test_damaged_file_called_yolov8s_is_refused_and_stays(self, model, tmp_path, monkeypatch):
        """Taken for a download that broke off, it was deleted, to be downloaded again."""
        monkeypatch.chdir(tmp_path)
        path = write_checkpoint(Path("yolov8s.pt"), model)
        damaged = path.read_bytes()[:-5000]
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"yolov8s\.pt is no readable checkpoint"):
            load_network(path, runtime="torch", device="cpu")
        assert path.read_bytes() == damaged


class TestPicklesThatMeanHarm:
    """Nothing that a pickle names is called: the file that it would make is never there."""

    @pytest.fixture
    def marker(self, tmp_path):
        return tmp_path / "it-was-executed"

    @pytest.mark.parametrize("kind", [Evil, EvilByExec])
    def test_the_pickles_of_these_tests_do_execute_where_they_are_simply_loaded(
        self, kind, marker, tmp_path
    ):
        path = tmp_path / "model.pt"
        torch.save({"model": kind(marker)}, path)
        torch.load(path, weights_only=False)
        assert marker.exists()
        marker.unlink()
        pickle.loads(write_evil_pickle(path, kind(marker)).read_bytes())
        assert marker.exists()

    @pytest.mark.parametrize("kind", [Evil, EvilByExec])
    @pytest.mark.parametrize("key", ["model", "ema", "epoch"])
    def test_checkpoint_with_a_call_in_it_is_refused_and_not_executed(
        self, model, marker, kind, key, tmp_path
    ):
        path = tmp_path / "model.pt"
        torch.save({"model": model, "ema": None, key: kind(marker)}, path)
        assert refusal(path, tmp_path).code == "weights_unreadable"
        assert not marker.exists()

    def test_call_hidden_in_a_part_of_a_real_model_is_not_executed(self, model, marker, tmp_path):
        path = tmp_path / "model.pt"
        model.model[3].hidden = Evil(marker)
        try:
            write_checkpoint(path, model)
        finally:
            del model.model[3].hidden
        assert refusal(path, tmp_path).code == "weights_unreadable"
        assert not marker.exists()

    def test_plain_pickle_is_refused_and_not_executed(self, marker, tmp_path):
        path = write_evil_pickle(tmp_path / "model.pt", Evil(marker))
        assert refusal(path, tmp_path).detail == "The file is no ONNX model."
        assert not marker.exists()

    def test_old_format_of_torch_is_refused_and_not_executed(self, marker, tmp_path):
        path = tmp_path / "model.pt"
        torch.save({"model": Evil(marker)}, path, _use_new_zipfile_serialization=False)
        assert refusal(path, tmp_path).code == "weights_unreadable"
        assert not marker.exists()


class TestCheckpoints:
    """What is no plain detector is refused with the reason."""

    def test_model_of_another_task(self, tmp_path):
        other = tiny_model(tmp_path, "SegmentationModel")
        path = write_checkpoint(tmp_path / "model.pt", other)
        assert refusal(path, tmp_path).detail == "model.pt holds no detection model."

    @pytest.mark.parametrize(
        ("names", "reason"),
        [
            ({0: "car"}, "names not as many classes as it has"),
            ({0: "car", 2: "bus"}, "from 0 on"),
            ({0: "car", 1: "a\nb"}, "is no class name"),
            ({0: "car", 1: ""}, "is no class name"),
            ({0: "car", 1: "x" * 101}, "is no class name"),
            ({0: "car", 1: "car"}, "The model calls 2 of its classes 'car'."),
            ({0: "STRASSE", 1: "Straße"}, "The model calls 2 of its classes 'strasse'."),
        ],
    )
    def test_names_that_are_none(self, model, names, reason, tmp_path):
        was = model.names
        model.names = names
        try:
            path = write_checkpoint(tmp_path / "model.pt", model)
        finally:
            model.names = was
        error = refusal(path, tmp_path)
        assert error.code == "not_a_detector"
        assert reason in error.detail

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"reg_max": 1}, "The model's last part is not that of YOLOv8."),
            ({"end2end": True}, "The model's last part is not that of YOLOv8."),
            ({"reg_max": 1, "end2end": True}, "The model's last part is not that of YOLOv8."),
            ({"channels": 1}, "The model takes pictures of 1, not 3 channels."),
            ({"channels": 4}, "The model takes pictures of 4, not 3 channels."),
        ],
    )
    def test_detector_that_is_not_read_as_yolov8_is(self, changes, reason, tmp_path):
        path = write_checkpoint(tmp_path / "model.pt", tiny_model(tmp_path, **changes))
        error = refusal(path, tmp_path)
        assert (error.code, error.detail) == ("not_a_detector", reason)
        with pytest.raises(WeightsError, match=re.escape(reason)):  # so is one stored before
            load_network(path, precision="fp32", runtime="torch", device="cpu")

    def test_other_things_in_a_checkpoint(self, tmp_path):
        path = tmp_path / "model.pt"
        for content in ({"model": {"a": 1}}, {"weights": torch.zeros(3)}, [1, 2], 7):
            torch.save(content, path)
            assert refusal(path, tmp_path).code == "weights_unreadable"

    def test_zip_that_is_no_checkpoint_or_could_grow_without_bounds(self, tmp_path):
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
        assert refusal(path, tmp_path).code == "weights_unreadable"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("model/data.pkl", b"0" * 10_000_000)
        assert refusal(path, tmp_path).detail == "The checkpoint is compressed."
        path.write_bytes(path.read_bytes()[:200])
        assert refusal(path, tmp_path).detail == "The file is no sound checkpoint."


@given(content=st.binary(max_size=300))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_refused_in_words(content, tmp_path):
    path = tmp_path / "model.pt"
    for start in (b"", b"PK\x03\x04", b"\x08\x08"):
        path.write_bytes(start + content)
        assert refusal(path, tmp_path).code in {
            "weights_unreadable",
            "weights_unsafe",
            "not_a_detector",
        }


class TestOnnx:
    """An ONNX file is data until something runs it; what would need more than itself is refused."""

    def test_export_tells_its_classes_and_the_size_of_its_input(self, tmp_path):
        facts = read_weights(write_onnx(tmp_path / "model.pt"))
        assert facts == WeightsFacts("onnx", CLASSES, IMAGE_SIZE, 6 * CELLS)

    def test_input_of_any_size(self, tmp_path):
        open_model = onnx_model(
            input_shape=["batch", 3, "height", "width"], output_shape=["batch", 6, "anchors"]
        )
        assert read_weights(write_onnx(tmp_path / "model.onnx", open_model)).image_size is None

    def test_real_export_for_any_size_is_taken(self, model, tmp_path):
        facts = read_weights(export_onnx(tmp_path / "model.onnx", copy.deepcopy(model)))
        assert (facts.class_names, facts.image_size) == (CLASSES, None)

    def test_real_export_that_merges_its_boxes_and_says_nothing_of_it(self, tmp_path):
        model = tiny_model(tmp_path, end2end=True, reg_max=1)
        model.end2end = True
        error = refusal(export_onnx(tmp_path / "model.onnx", model), tmp_path)
        assert error.code == "not_a_detector"
        assert "output is [1, 300, 6], not (1, 6, cells)" in error.detail

    @pytest.mark.parametrize("answer_shape", [[1, 300, 6], [1, 525, 6], [1, 6, 526], [1, 7, 525]])
    @pytest.mark.parametrize("sides", [[160, 160], ["height", "width"]])
    def test_what_comes_out_is_found_where_it_is_left_open(self, answer_shape, sides, tmp_path):
        model = onnx_model(
            input_shape=[1, 3, *sides],
            output_shape=["batch", "channels", "anchors"],
            answer_shape=answer_shape,
        )
        error = refusal(write_onnx(tmp_path / "model.onnx", model), tmp_path)
        assert error.code == "not_a_detector"
        assert f"output is {answer_shape}, not (1, 6, cells)" in error.detail

    def test_output_that_is_not_what_the_file_says_is_refused(self, tmp_path):
        model = onnx_model(answer_shape=[1, 6, 526])
        error = refusal(write_onnx(tmp_path / "model.onnx", model), tmp_path)
        assert "output is [1, 6, 526], not (1, 6, cells)" in error.detail

    def test_input_that_cannot_have_the_smallest_size_is_refused(self, tmp_path):
        model = onnx_model(input_shape=[1, 3, "height", "width"])
        wide = helper.make_tensor("wide", TensorProto.FLOAT, [192], [0.0] * 192)
        model.graph.initializer.append(wide)
        del model.graph.node[:]
        model.graph.node.extend(
            [
                helper.make_node("Add", ["images", "wide"], ["sum"]),
                helper.make_node("ReduceMax", ["sum"], ["most"], keepdims=0),
                helper.make_node("Mul", ["answer", "most"], ["output0"]),
            ]
        )
        error = refusal(write_onnx(tmp_path / "model.onnx", model), tmp_path)
        assert (error.code, error.detail) == (
            "not_a_detector",
            "The model takes no picture of 160 x 160 pixels.",
        )

    def test_metadata_of_a_plain_export_are_no_reason_to_refuse_it(self, tmp_path):
        arguments = "{'batch': 1, 'nms': None, 'dynamic': True}"
        for given_arguments in (arguments, arguments.replace("None", "False"), "no literal"):
            model = onnx_model(end2end="False", nms="False", stride="32", args=given_arguments)
            facts = read_weights(write_onnx(tmp_path / "model.onnx", model))
            assert facts == WeightsFacts("onnx", CLASSES, IMAGE_SIZE, 6 * CELLS)

    @pytest.mark.parametrize(
        ("changes", "code", "reason"),
        [
            ({"end2end": "True"}, "not_a_detector", "merges its boxes itself"),
            ({"nms": "True"}, "not_a_detector", "merges its boxes itself"),
            ({"args": "{'batch': 1, 'nms': True}"}, "not_a_detector", "merges its boxes itself"),
            ({"stride": "64"}, "not_a_detector", "largest stride is 64, not 32 as of YOLOv8"),
            ({"domain": "com.evil"}, "weights_unsafe", "not ONNX's own: com.evil"),
            ({"names": None}, "not_a_detector", "do not name its classes"),
            ({"names": "__import__('os').getpid()"}, "not_a_detector", "do not name its classes"),
            ({"names": "['car', 'boat']"}, "not_a_detector", "do not name its classes"),
            ({"names": "{0: 'car'}"}, "not_a_detector", "output is [1, 6, 525], not (1, 5, cells)"),
            ({"names": "{1: 'car', 2: 'boat'}"}, "not_a_detector", "from 0 on"),
            ({"names": "(" * 100_000}, "not_a_detector", "do not name its classes"),
            ({"names": "{0: 'car', 1: 'Car'}"}, "not_a_detector", "calls 2 of its classes 'car'"),
            ({"task": "segment"}, "not_a_detector", "made for 'segment'"),
            ({"output_shape": [1, 525, 6]}, "not_a_detector", "output is [1, 525, 6]"),
            ({"output_shape": [1, 6, 526]}, "not_a_detector", "output is [1, 6, 526]"),
            ({"output_shape": [1, 6]}, "not_a_detector", "output is [1, 6]"),
            ({"input_shape": [1, 1, 64, 64]}, "not_a_detector", "input is not one picture"),
            ({"input_shape": [8, 3, 64, 64]}, "not_a_detector", "input is not one picture"),
            ({"input_shape": [1, 3, 64, 96]}, "not_a_detector", "must be square"),
            ({"input_shape": [1, 3, 70, 70]}, "not_a_detector", "must be square"),
            ({"input_shape": [1, 3, 96, 96]}, "not_a_detector", "a side of 96 pixels; it must"),
            ({"input_shape": [1, 3, 2560, 2560]}, "not_a_detector", "it must have 160 to 2048"),
        ],
    )
    def test_what_is_no_detector_of_ours_is_refused(self, changes, code, reason, tmp_path):
        error = refusal(write_onnx(tmp_path / "model.onnx", onnx_model(**changes)), tmp_path)
        assert error.code == code
        assert reason in error.detail

    def test_weights_in_other_files_are_not_followed(self, tmp_path):
        model = onnx_model()
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        error = refusal(path, tmp_path)
        assert error.code == "weights_unsafe"
        assert error.detail == "The model keeps its weights in other files."

    def test_external_tensor_in_an_attribute_is_found_too(self, tmp_path):
        node = helper.make_node(
            "Constant",
            [],
            ["unused"],
            value=helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0]),
        )
        node.attribute[0].t.external_data.add(key="location", value="secret")
        node.attribute[0].t.data_location = TensorProto.EXTERNAL
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_model(nodes=[node]).SerializeToString())
        assert refusal(path, tmp_path).detail == "The model keeps its weights in other files."

    def test_graphs_and_functions_within_are_refused(self, tmp_path):
        inner = helper.make_graph([], "inner", [], [])
        node = helper.make_node("If", ["images"], ["x"], then_branch=inner, else_branch=inner)
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_model(nodes=[node]).SerializeToString())
        assert refusal(path, tmp_path).detail == "The model has a graph within If."
        model = onnx_model()
        model.functions.add(name="mine")
        path.write_bytes(model.SerializeToString())
        assert refusal(path, tmp_path).detail == "The model brings functions of its own."

    def test_graph_that_is_not_sound_is_refused(self, tmp_path):
        model = onnx_model(nodes=[helper.make_node("NoSuchOperator", ["images"], ["y"])])
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        assert refusal(path, tmp_path).detail.startswith("The model is not sound: ")
        onnx.save_model(onnx_model(), str(path))
        path.write_bytes(path.read_bytes()[:-100])
        assert refusal(path, tmp_path).code in {"weights_unreadable", "not_a_detector"}
