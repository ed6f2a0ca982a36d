"""From a data set to records, their images and their tokens: ours, and the authors' release."""

import pickle
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest

from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.hub import load_set
from unireason_lib.dataset.release import write_release
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.errors import DatasetError
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging.frame import QWEN_FRAME
from unireason_lib.training.data import Examples, data_folder, images_from, training_records
from unireason_lib.training.encoding import Encoder, conversation


def test_records_are_chosen_by_dimension_and_number(data):
    everything = training_records(data)
    assert {r.split for r in everything} == {"train"}
    assert len({r.id for r in everything}) == len(everything)
    assert list(everything[1:3]) == [everything[1], everything[2]]
    some = training_records(data, {"2d": 10, "3d": 4})
    assert Counter(r.dimension for r in some) == {"2d": 10, "3d": 4}
    assert {r.dimension for r in training_records(data, {"2d": None})} == {"2d"}
    again = training_records(data, {"3d": 3 * len(training_records(data, {"3d": None}))})
    assert set(Counter(r.id for r in again).values()) == {3}  # each as often as any other
    assert [r.id for r in training_records(data, seed=1)] != [r.id for r in everything]
    of_kinds = training_records(data, {"2d": None, "3d": 3}, kinds=("quadrant", "relation"))
    assert {r.kind for r in of_kinds} <= {"quadrant", "relation"}
    assert Counter(r.dimension for r in of_kinds)["3d"] == 3
    fewer, more = (training_records(data, {"3d": n}) for n in (2, 4))
    assert {r.id for r in fewer} <= {r.id for r in more}


def test_a_temperature_brings_rare_kinds_more_often(data):
    """At 2, numbers of records are as the square roots of what there is; at 1 as they are."""
    there = Counter(r.kind for r in training_records(data, {"2d": None}))
    wanted = sum(there.values())
    mixed = training_records(data, {"2d": None}, temperature=2.0)
    counts = Counter(r.kind for r in mixed)
    assert counts.total() == wanted
    roots = {kind: n**0.5 for kind, n in there.items()}
    for kind, root in roots.items():
        assert abs(counts[kind] - wanted * root / sum(roots.values())) <= 1
        times = Counter(r.id for r in mixed if r.kind == kind).values()
        assert max(times) - min(times) <= 1 and (len(times) == there[kind] or max(times) == 1)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"records": {"2d": 0, "3d": 0}}, "split 'train'"),
        ({"split": "test"}, "split 'test'"),
        ({"kinds": ["sunshine"]}, "of the kinds sunshine"),
    ],
)
def test_records_that_are_not_there_are_named(data, how, named):
    with pytest.raises(DatasetError, match=named):
        training_records(data, **how)


@pytest.mark.parametrize("read", [training_records, images_from, data_folder])
@pytest.mark.parametrize("name", ["/nothere", "nothere", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_id(read, name):
    """The advice was to download that path from the hub."""
    with pytest.raises(DatasetError, match="no such folder") as refused:
        read(name)
    assert "download" not in str(refused.value)


@pytest.mark.parametrize("keep", [True, False])
def test_too_long_examples_are_cut_or_replaced(study, tiny_model, keep):
    """A question that is too long ended a run; the next record stands in its place."""
    volume = next(one for one in study.records if one.dimension == "3d")
    image = next(one for one in study.records if one.dimension == "2d")
    given = (volume, image), study.images, tiny_model[1]
    whole = Examples(*given)
    most = whole.lengths[0] - 20
    cut = Examples(*given, max_length=most, keep=keep)
    assert len(cut[0]) <= most and len(cut[1]) == whole.lengths[1]
    most = int(whole[0].loss_mask.argmax())  # tokens of the volume's question
    with pytest.warns(UserWarning, match=f"{volume.id} is left out: .* more than {most} tokens"):
        some = Examples(*given, max_length=most, keep=keep)
        shown = [some[k].images for k in range(2)]
    assert all(np.array_equal(one[0], whole[1].images[0]) for one in shown)


def test_an_image_of_several_records_is_kept_once(study, tiny_model):
    examples = Examples(study.records, study.images, tiny_model[1])
    images = [image for one in examples for image in one.images]
    kept = {id(image) for image in images}
    assert len(kept) == len({(i.shape, i.tobytes()) for i in images}) < len(images)


def test_2d_replies_may_have_other_components(study, tiny_model):
    records = (study.records[0], study.records[-1])
    examples = Examples(records, study.images, tiny_model[1], components_2d="answer")
    texts = [tiny_model[1].tokenizer.decode(one.ids) for one in examples]
    assert ["<think>" in text for text in texts] == [False, True]


def test_examples_that_are_not_encoded_yet(study, tiny_model, data):
    """Their lengths are nearly right. Where processes are not forked they get them pickled."""
    true, estimated = (
        Examples(study.records, images_from(data), tiny_model[1], keep=keep)
        for keep in (True, False)
    )
    assert np.corrcoef(true.lengths, estimated.lengths)[0, 1] > 0.99
    assert pickle.loads(pickle.dumps(estimated)).lengths == estimated.lengths


# the authors' release: an offline replica in its folders, columns and sizes


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A data set of ours at the paper's size (slices of 256 x 256, volumes of 32), and the same as
    a release with its folder of volumes."""
    folder, kinds = tmp_path_factory.mktemp("release"), ({"dimension": "2d"}, {"start": 500_000})
    sources = tuple(SourceSpec("phantom", None, {"count": 1, **kind}) for kind in kinds)
    how = {"size": (32, 256, 256), "frame": QWEN_FRAME, "per_family": 1, "prior_studies": 0}
    how["fractions"] = {"train": 1.0, "val": 0.0, "test": 0.0}
    ours = build(BuildConfig(sources, **how), folder / "set").folder
    return ours, write_release(ours, folder / "UniReason-Med-Data", folder / "m3d"), folder / "m3d"


def test_a_model_learns_the_same_from_the_release(release, tmp_path):
    ours, folder, m3d = release
    limits = {"min_pixels": QWEN_FRAME.min_pixels, "max_pixels": QWEN_FRAME.max_pixels}
    _, processor = load_model(build_tiny(tmp_path / "qwen", patch_size=14, **limits), device="cpu")
    encoder = Encoder(processor)
    by_reply = {one.reply: one for one in map(Record.from_row, load_set(ours, "sft", "train"))}
    stored, scans = images_from(ours), images_from(folder, m3d_root=m3d)
    records = []
    for split in ("train", "val", "test"):  # that of a row follows from its patient
        with suppress(DatasetError):  # none fell into it
            records += training_records(folder, split=split, m3d_root=m3d)
    assert len(records) == len(by_reply)
    for record in records:
        same = by_reply[record.reply]
        assert (record.answer, record.boxes) == (same.answer, same.boxes)
        theirs, expected = (
            encoder(conversation(one, images(one), "full", encoder.frame))
            for one, images in ((record, scans), (same, stored))
        )
        assert np.array_equal(theirs.ids, expected.ids)
        assert np.array_equal(theirs.loss_mask, expected.loss_mask)
        for a, b in zip(theirs.images, expected.images, strict=True):
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98  # windowed twice, for a volume


def test_volumes_that_nobody_holds_are_left_out_and_counted(release):
    warns = pytest.warns(UserWarning, match=r"\d+ rows about volumes are left out")
    with warns, pytest.raises(DatasetError, match="3d"):
        training_records(release[1], {"3d": 4})
