import io
from pathlib import Path

from PIL import Image

from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import Identity, RunFolder
from opusclip_mlops.records import Params, Text
from opusclip_mlops.sinks.tensorboard import event_folder
from tests.journeys import LOCAL_ID, append, end, make_run
from tests.reading import Point, event_reader, points_of_tensorboard
from tests.sinks.sink_contract import T0_MS, SinkContract, metrics, staged_clip


def events_of(folder: RunFolder) -> Path:
    return folder.path.parent.parent / "runs" / "films" / LOCAL_ID


class TestTensorBoard(SinkContract):
    name = "tensorboard"
    narrow = True

    def points(self, folder: RunFolder) -> list[Point]:
        return points_of_tensorboard(events_of(folder))


def test_a_clip_is_a_moving_gif_at_its_step(tmp_path: Path) -> None:
    """The Images tab shows a GIF that moves."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [staged_clip(folder, step=12)])
    end(folder)
    deliver(folder, "tensorboard")
    [image] = event_reader(events_of(folder)).Images("samples/kite")
    assert image.step == 12
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert (picture.format, getattr(picture, "n_frames", 1)) == ("GIF", 8)
    assert picture.size == (image.width, image.height)


def test_params_fill_the_hparams_tab_and_the_text_tab(tmp_path: Path) -> None:
    """Params logged in parts stand together, with how the run ended."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [Params({"lr": "0.1"}), Params({"name": "a|b"}), Text(T0_MS, 2, "notes", "hi")])
    end(folder, "FAILED")
    deliver(folder, "tensorboard")
    reader = event_reader(events_of(folder))
    from tensorboard.plugins.hparams import api_pb2, metadata

    data = reader.summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        data["_hparams_/session_start_info"].plugin_data.content
    )
    assert {"lr", "name"} == set(start.hparams)
    finish = metadata.parse_session_end_info_plugin_data(
        data["_hparams_/session_end_info"].plugin_data.content
    )
    assert finish.status == api_pb2.STATUS_FAILURE
    [note] = reader.Tensors("notes")
    assert note.step == 2
    assert note.tensor_proto.string_val[0] == b"hi"


def test_a_torn_event_is_cut_off_before_going_on(tmp_path: Path) -> None:
    """What a crash left behind the acknowledged length is removed, not read as an event."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, metrics(5))
    end(folder)
    deliver(folder, "tensorboard")
    [file] = events_of(folder).iterdir()
    with file.open("ab") as torn:
        torn.write(b"\x20\x00\x00\x00torn")
    append(folder, metrics(5, first=5))
    deliver(folder, "tensorboard")
    assert len(points_of_tensorboard(events_of(folder))) == 20


def test_event_files_stay_in_their_folder(tmp_path: Path) -> None:
    """An experiment's name can't lead out of the folder for event files."""
    for name in ("../../etc", "/etc", "a/../../b", ".."):
        found = event_folder(tmp_path, Identity(mirror_id="m", experiment_name=name))
        assert found.resolve().is_relative_to(tmp_path.resolve())
        assert found.parent != tmp_path
