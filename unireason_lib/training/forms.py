"""What a model is trained to write: the whole grounded reply, or one with a component left out.

The paper's second claim is about components, so each form is an ablation of the same records:

=============  ===========================================  =============================
form           the reply                                    at inference
=============  ===========================================  =============================
``full``       thought, boxes, and the regions' tokens      boxes fetch their regions
``no regions`` thought and boxes                            boxes fetch nothing
``no boxes``   thought in words                             nothing is pointed at
``answer``     the letter and the option                    no thought
=============  ===========================================  =============================

Question, pictures and answer are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unireason_lib.dataset.schema import Record, split_reply
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import ProcessorFrame

if TYPE_CHECKING:
    from PIL import Image

FORMS: Mapping[str, str] = {
    "full": "thought, boxes and region tokens",
    "no regions": "thought and boxes",
    "no boxes": "thought in words",
    "answer": "answer only",
}
"""Form -> what the reply holds."""

INSTEAD = "this region"
"""What stands in place of a box in the form ``no boxes``."""


def injects(form: str) -> bool:
    """Whether boxes fetch their regions at inference, for a model that was trained in this form."""
    return check_form(form) == "full"


def check_form(form: str) -> str:
    """The form, if there is one of that name.

    Raises:
        DatasetError: There is none.
    """
    if form not in FORMS:
        raise DatasetError("form", ", ".join(FORMS), repr(form), "choose one")
    return form


def conversation(
    record: Record,
    pictures: Sequence[Image.Image],
    form: str = "full",
    frame: ProcessorFrame | None = None,
) -> list[dict[str, Any]]:
    """A record as a conversation with pictures in it, in one of the forms.

    Args:
        record: A checked record.
        pictures: Those of its image ids, in order.
        form: A key of :data:`FORMS`.
        frame: The processor's frame; by default the one in which the record's boxes are written.

    Raises:
        DatasetError: An unknown form, or the wrong number of pictures.
    """
    user, assistant = record.load(pictures, frame)
    if check_form(form) == "full":
        return [user, assistant]
    if form == "no regions":
        reply = record.reply
    elif form == "answer":
        reply = record.truth
    else:
        pieces = split_reply(record.reply)
        reply = "".join(text if box is None else _without_box(text) for text, box in pieces)
    return [user, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]


def _without_box(text: str) -> str:
    """A piece of a reply that ends with a box, with words in its place."""
    from unireason_lib.boxes import BOX_START

    return text[: text.rindex(BOX_START)] + INSTEAD
