"""Records: the conversation that follows from the reply, real pictures in it, and the way through JSON."""

import json

import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.records import Record, image_ids_of, split_reply
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.errors import DatasetError
from unireason_lib.imaging.crops import crop_region
from unireason_lib.prompts import question_text


def test_the_conversation_has_pictures_and_crops_in_their_places(picture_record):
    record = picture_record()
    user, assistant = record.messages
    assert user["content"][0] == {"type": "image", "image": "aa00"}
    assert user["content"][1]["text"] == question_text(record.question, record.options)
    kinds = [part["type"] for part in assistant["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]
    assert assistant["content"][1]["crop"] == {"box": [4, 4, 40, 30], "slice": 0}
    assert "".join(part["text"] for part in assistant["content"] if part["type"] == "text") == record.reply
    assert assistant["content"][0]["text"].endswith("<|box_end|>")


def test_a_cuboid_fetches_a_crop_from_each_slice_that_it_spans(volume_record):
    record = volume_record()
    user, assistant = record.messages
    assert [part["image"] for part in user["content"][:-1]] == list(record.image_ids)
    assert user["content"][-1]["text"].startswith("These are 6 axial slices")
    crops = [part["crop"] for part in assistant["content"] if part["type"] == "image"]
    assert crops == [{"box": [2, 8, 1, 30, 40, 4], "slice": z} for z in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["picture_record", "volume_record"])
def test_loading_cuts_the_same_crops_as_generation(kind, request, pictures, frame):
    record = request.getfixturevalue(kind)()
    shown = list(pictures(record).values())
    user, assistant = record.load(shown)
    aligned = [frame.aligned(picture) for picture in shown]
    assert [part["image"].tobytes() for part in user["content"][:-1]] == [p.tobytes() for p in aligned]
    expected = [crop.tobytes() for box in record.boxes for crop in crop_region(aligned, box)]
    assert [p["image"].tobytes() for p in assistant["content"] if p["type"] == "image"] == expected
    shape = [[part["type"] for part in turn["content"]] for turn in record.messages]
    assert [[part["type"] for part in turn["content"]] for turn in (user, assistant)] == shape


def test_loading_with_the_wrong_number_of_pictures_or_without_a_frame_says_so(
    picture_record, volume_record, pictures
):
    one = list(pictures(picture_record()).values())
    with pytest.raises(DatasetError, match="expected 6 pictures, found 1"):
        volume_record().load(one)
    with pytest.raises(DatasetError, match="frame"):
        picture_record(serialization={}).load(one)


@pytest.mark.parametrize("changes", [{}, {"lookup": "a/b.nii.gz", "asked": "Hm?", "picture_size": None}])
def test_a_record_survives_json(changes, volume_record):
    record = volume_record(**changes)
    again = Record.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record and again.messages == record.messages
    assert Record.from_dict({**record.to_dict(), "of a later version": 1}) == record


def test_a_missing_field_is_named(picture_record):
    values = picture_record().to_dict()
    del values["answer"]
    with pytest.raises(DatasetError, match="answer"):
        Record.from_dict(values)


def test_boxes_and_truth_follow_from_text_and_letter(picture_record, volume_record):
    assert picture_record().boxes == [Box2D(4, 4, 40, 30), Box2D(30, 2, 48, 20)]
    assert volume_record().boxes == [Box3D(2, 8, 1, 30, 40, 4)]
    assert picture_record().truth == "B. the liver"
    assert split_reply("no box") == [("no box", None)] and split_reply("") == []


def test_image_ids_are_neutral_stable_and_differ_by_study_source_and_layout(view_of):
    study, other = phantom(7), phantom(8)
    names = image_ids_of(view_of(study))
    assert len(names) == len(set(names)) == 8 and names == image_ids_of(view_of(phantom(7)))
    assert not any("phantom" in name for name in names)
    flat = image_ids_of(view_of(phantom_slice(7)))
    everything = [*names, *image_ids_of(view_of(other)), *image_ids_of(view_of(study, (8, 32, 32))), *flat]
    assert len(flat) == 1 and len(everything) == len(set(everything))
