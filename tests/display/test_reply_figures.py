import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.display import hero_figure, show_trace
from unireason_lib.display.reply_figures import MAX_BOXES, chosen_slices
from unireason_lib.errors import RequestError
from unireason_lib.grounding.trace import Pointing
from unireason_lib.imaging import ProcessorFrame

CUBOIDS = st.lists(
    st.tuples(st.integers(-5, 40), st.integers(1, 20)).map(
        lambda z: Box3D(0, 0, z[0], 4, 4, z[0] + z[1])
    ),
    max_size=6,
)


@settings(deadline=None)
@given(CUBOIDS, st.integers(1, 32), st.integers(1, 12))
def test_chosen_slices_exist_and_show_every_box_while_there_is_room(boxes, count, limit):
    shown = chosen_slices(boxes, count, limit)
    assert shown == sorted(set(shown)) and 1 <= len(shown) <= limit
    assert 0 <= shown[0] and shown[-1] < count
    inside = [box for box in boxes if box.z2 > 0 and box.z1 < count]
    if len(inside) <= limit:
        assert all(any(box.z1 <= z < box.z2 for z in shown) for box in inside)
    if inside:
        assert all(any(box.z1 <= z < box.z2 for box in inside) for z in shown)


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [
        text.get_text() for text in figure.texts
    ]


def shown_slices(figure):
    return [int(word.split()[1]) for word in words(figure) if word.startswith("slice ")]


def test_a_reply_over_a_volume_shows_where_it_pointed(volume_trace, slices, clean_layout):
    figure = show_trace(volume_trace, slices)
    assert shown_slices(figure) == [2, 3, 4, 5, 6, 7]
    said = words(figure)
    assert "1 10,8,2,26,24,5".replace(" ", " [") + "]" in said and "3 [30,4,4,44,20,8]" in said
    assert "+3 crops" in said and "+4 crops" in said
    assert "2 [900,900,0,950,950,2]" in said and "outside" in said
    assert any("answer A" in word and "3 rounds" in word for word in said)
    clean_layout(figure)


def test_crops_in_the_figure_are_the_pixels_that_the_model_got(volume_trace, slices):
    figure = show_trace(volume_trace, slices)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    for crops in volume_trace.crops:
        for crop in crops:
            assert any(np.array_equal(picture, np.asarray(crop)) for picture in drawn)


def test_a_line_of_a_results_file_makes_the_same_figure(volume_trace, slices):
    line = json.loads(json.dumps(volume_trace.to_dict()))
    assert show_trace(line, slices)._repr_png_() == show_trace(volume_trace, slices)._repr_png_()


def test_a_line_of_an_evaluation_makes_the_same_figure(volume_trace, slices):
    said = volume_trace.to_dict()
    line = {
        name: said[name]
        for name in ("id", "dimension", "question", "options", "text", "answer", "stop", "rounds")
    }
    line |= {
        name: said[name] for name in ("prompt_tokens", "own_tokens", "injected_tokens", "seconds")
    }
    statuses = [pointing.status for pointing in volume_trace.pointings]
    line |= {"prediction": "A", "statuses": statuses}
    assert show_trace(line, slices)._repr_png_() == show_trace(volume_trace, slices)._repr_png_()
    unknown = words(
        show_trace(line | {"statuses": ["injected"]}, slices)
    )  # not one for each box: none is believed
    assert not any("crops" in word or "outside" in word for word in unknown)


def test_a_reply_over_a_picture(picture_trace, slices, clean_layout):
    figure = show_trace(picture_trace, slices[0])
    assert shown_slices(figure) == []
    assert "1 [5,6,25,30]" in words(figure)
    clean_layout(figure)


def test_other_pictures_than_those_of_the_model_are_refused(volume_trace, picture_trace, slices):
    twice = [picture.resize((96, 80)) for picture in slices]
    with pytest.raises(RequestError, match=r"96 x 80 pixels.*frame\.aligned"):
        show_trace(volume_trace, twice)
    with pytest.raises(RequestError, match="crops were cut"):
        show_trace(volume_trace, slices[::-1])
    with pytest.raises(RequestError, match="neither"):
        show_trace(picture_trace)


def test_with_a_frame_the_originals_are_shown_as_the_model_saw_them(make_trace, slices, tokenizer):
    frame = ProcessorFrame(8, 2, 16 * 16, 32 * 32)
    aligned = [frame.aligned(picture) for picture in slices]
    assert aligned[0].size != slices[0].size
    trace = make_trace(
        aligned, ["<think>", Box3D(2, 3, 1, 12, 13, 3), "</think>A. left"], tokenizer
    )
    trace = dataclasses.replace(trace, request=dataclasses.replace(trace.request, images=slices))
    figure = show_trace(trace, frame=frame)
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert np.array_equal(drawn[0], np.asarray(aligned[1]))
    with pytest.raises(RequestError):
        show_trace(trace, slices)


def test_a_reply_without_any_box(make_trace, slices, tokenizer, clean_layout):
    trace = make_trace(slices, ["B"], tokenizer)
    clean_layout(show_trace(trace, slices))
    empty = dataclasses.replace(trace, text="", token_ids=(), own_mask=())
    clean_layout(show_trace(empty, slices))
    clean_layout(hero_figure(empty, slices, tokenizer))


def test_hostile_and_endless_replies_are_drawn(make_trace, slices, tokenizer, clean_layout):
    boxes = [Box3D(i % 40, i % 30, i % 7, i % 40 + 5, i % 30 + 5, i % 7 + 1) for i in range(50)]
    parts = [part for box in boxes for part in ("$\\frac{ \x00 漢字 ", box)]
    trace = make_trace(
        slices,
        [*parts, "x" * 3000],
        tokenizer,
        question="$ why \u202e " * 30,
        options={"A": "$", "B": "{"},
    )
    broken = Pointing("<|box_start|>[1,2,</script>]<|box_end|>", None, "malformed", (), 5)
    trace = dataclasses.replace(
        trace, pointings=(*trace.pointings, broken), text=trace.text + broken.text
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = show_trace(trace, slices)
        clean_layout(figure)
        hero_figure(trace, slices, tokenizer)._repr_png_()
    assert any("more lines" in word for word in words(figure))
    assert str(MAX_BOXES + 1) not in words(figure)


def test_hero_shows_all_four_steps(volume_trace, slices, tokenizer, clean_layout):
    figure = hero_figure(volume_trace, slices, tokenizer, title="Write a box, look again, answer")
    said = words(figure)
    assert [word for word in said if word[:1].isdigit() and "  It " in word] == [
        "1  It reads the volume as 8 slices",
        "2  It points (slice 4)",
        "3  It looks again",
        "4  It answers",
    ]
    assert "8 images × 6" in said and "3 images × 6" in said
    clean_layout(figure)


def test_hero_of_one_picture(picture_trace, slices, tokenizer, clean_layout):
    figure = hero_figure(picture_trace, slices[:1], tokenizer)
    assert "1  It points" in words(figure)
    clean_layout(figure)


def test_boxes_that_leave_the_picture_are_cut_at_its_edge(make_trace, slices, tokenizer):
    trace = make_trace(slices[:1], ["a", Box2D(-20, -20, 10, 10)], tokenizer, dimension="2d")
    figure = show_trace(trace, slices[:1])
    outline = next(p for p in figure.axes[1].patches if not p.get_fill())
    assert outline.get_clip_on()


def test_a_reply_of_a_real_model_goes_through_every_picture(tiny_model, slices, clean_layout):
    """From the generator to figure, strip and page: what was injected is what is shown."""
    from unireason_lib.display import token_strip, trace_html
    from unireason_lib.display.tokens import token_chips
    from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script

    model, processor = tiny_model
    frame = ProcessorFrame.from_processor(processor)
    width, height = frame.aligned(slices[0]).size
    script = Script(
        processor.tokenizer,
        (
            f"<think>Look: <|box_start|>[1,1,2,{width // 2},{height - 1},5]<|box_end|> and",
            4,
            "</think>A. left<|im_end|>",
        ),
    )
    request = GroundedRequest("Where is it?", slices, {"A": "left", "B": "right"}, "3d", id="tiny")
    (trace,) = GroundedGenerator(model, processor).generate(
        [request], scripts=[script], max_new_tokens=200
    )
    assert len(trace.crops[0]) == 3
    clean_layout(show_trace(trace, frame=frame))
    clean_layout(token_strip(trace, processor.tokenizer))
    crops = [chip for chip in token_chips(trace, processor.tokenizer) if chip.owner == "injected"]
    assert sum(chip.tokens for chip in crops) == len(trace.own_mask) - sum(trace.own_mask)
    assert [chip.text for chip in crops] == [f"3 images × {crops[0].tokens // 3 - 2}"]
    page = trace_html(trace, frame=frame)
    assert page.count("<img ") == 3
    assert page == trace_html(trace.to_dict(), [frame.aligned(picture) for picture in slices])
