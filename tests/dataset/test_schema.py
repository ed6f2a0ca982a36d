"""Records: the conversation that follows from the reply, images in it, and the way through rows."""

from dataclasses import replace

import pyarrow as pa
import pytest

from unireason_lib.dataset.schema import SFT_FEATURES, Record, rl_table
from unireason_lib.errors import DatasetError
from unireason_lib.imaging.crops import crop_region

from .conftest import THOUSANDTHS, image_record, images_of, volume_record

both = pytest.mark.parametrize("made", [image_record, volume_record])


@both
def test_loading_cuts_the_same_crops_as_generation(made, frame):
    record = made()
    images = images_of(record)
    user, assistant = record.load(images)
    aligned = [frame.aligned(image) for image in images]
    shown = [part["image"].tobytes() for part in user["content"][:-1]]
    assert shown == [image.tobytes() for image in aligned]
    expected = [crop.tobytes() for box in record.boxes for crop in crop_region(aligned, box)]
    crops = [p["image"].tobytes() for p in assistant["content"] if p["type"] == "image"]
    assert crops == expected and len(crops) > 1
    texts = [part["text"] for part in assistant["content"] if part["type"] == "text"]
    assert "".join(texts) == record.reply and texts[0].endswith("<|box_end|>")
    with pytest.raises(DatasetError, match=f"expected {len(images)} images, found 0"):
        record.load([])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"asked": "Hm?", "image_size": None},
        {"serialization": {}, "scan": None},
        {"evidence": (), "names": ()},
        {"serialization": {"size": None, "window": "lung", "frame": THOUSANDTHS.to_dict()}},
    ],
    ids=str,
)
@both
def test_a_record_survives_its_typed_row(made, changes):
    record = made(**changes)
    sft = pa.Table.from_pylist([record.to_row()], SFT_FEATURES.arrow_schema)
    for table, reply in ((sft, record.reply), (rl_table(sft), "")):
        again = Record.from_row(table.to_pylist()[0])
        assert again.reply == reply
        assert replace(again, reply="") == replace(record, reply="")


@both
def test_a_record_is_written_for_a_model_of_another_scale(made, frame):
    """The crops are the same; what cannot be written anew is refused."""
    record = made(question="Which structure?")
    images, (height, width) = images_of(record), record.image_size
    other = record.written_for(THOUSANDTHS, height, width)
    assert record.written_for(frame, height, width) is record and other.frame == THOUSANDTHS
    for written, box, (_, evidence) in zip(other.boxes, record.boxes, other.evidence, strict=True):
        assert written.as_tuple() == evidence and written != box
        assert written.x1 == round(1000 * box.x1 / width + 1e-9)
        assert THOUSANDTHS.pixels(written, height, width) == box
    assert other.written_for(frame, height, width).reply == record.reply
    loaded = [one.load(images, THOUSANDTHS) for one in (record, other)]
    parts, first, second = (
        [p.get("text") or p["image"].tobytes() for t in turns for p in t["content"]]
        for turns in (record.load(images), *loaded)
    )
    assert first == second != parts
    pixels, converted = ([p for p in one if isinstance(p, bytes)] for one in (parts, first))
    assert pixels == converted
    stated = made(question="What is in [4,4,40,30]?")
    with pytest.raises(DatasetError, match=r"in thousandths of \(1000, 1000\), found boxes in pix"):
        stated.written_for(THOUSANDTHS, height, width)


def test_rows_have_the_columns_of_the_release_beside_typed_ones_and_no_json():
    record = volume_record()
    sft = record.to_row()
    (rl,) = rl_table(pa.Table.from_pylist([sft], SFT_FEATURES.arrow_schema)).to_pylist()
    contents = {"user": "<image>" * 6 + record.user_text, "assistant": record.reply}
    assert sft["messages"] == [{"role": k, "content": text} for k, text in contents.items()]
    assert rl["prompt"] == sft["messages"][:1] and rl["image_ids"] == list(record.image_ids)
    assert rl["reward_model"] == {"style": "rule", "ground_truth": "D"}
    assert (rl["data_source"], rl["ability"]) == ("made", "medical_vqa")
    assert rl["agent_name"] == "urm_single_assistant" and rl["extra_info"]["split"] == "test"
    assert sft["boxes"] == [{"name": "liver", "box": [2, 8, 1, 30, 40, 4]}]
    assert sft["options"][3] == {"letter": "D", "text": "Right, back"}
    layout = sft["serialization"]
    assert (layout["window"], layout["low"], layout["high"]) == (None, -200, 300)
    assert sft["scan"] == {"spec": "made:flip=xy", "key": "s1"}
    assert not any(isinstance(v, str) and v.startswith(("{", "[")) for v in {**sft, **rl}.values())
