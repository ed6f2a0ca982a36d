"""Who wrote which token: the prompt is given, the model writes its own, and every box fetches injected ones.

That is the whole difference between a grounded reply and an ordinary one, and what training must respect:
only the model's own tokens carry a loss. The strip shows all tokens in their order, one chip a token; the
tokens of a picture, which have no letters, are counted in one chip. :func:`token_strip` draws a reply, and
:func:`loss_strip` the same of an example to learn from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from unireason_lib.display.colors import INK, LOSS_OWNERS, MUTED, OWNERS, Owner

if TYPE_CHECKING:
    from unireason_lib.display.sheet import Sheet

VISION_START, IMAGE_TOKEN, VISION_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@dataclass(frozen=True)
class Chip:
    """Neighbouring tokens shown as one.

    Attributes:
        text: What the chip says.
        owner: ``"prompt"``, ``"own"`` or ``"injected"``; of an example also ``"picture"``.
        tokens: How many tokens it stands for.
        left_out: Whether the text stands for tokens that are not shown.
        picture: Whether they are the tokens of pictures.
    """

    text: str
    owner: str
    tokens: int
    left_out: bool = False
    picture: bool = False


def token_chips(
    trace: Any, tokenizer: Any, max_prompt: int = 48, max_reply: int = 600
) -> list[Chip]:
    """The tokens of prompt and reply as chips.

    Args:
        trace: A :class:`unireason_lib.grounding.Trace`, or anything with its ``prompt_ids``, ``token_ids`` and
            ``own_mask``.
        tokenizer: Whatever has ``decode(ids)``.
        max_prompt: Chips shown of the prompt; the middle of a longer one is left out and counted.
        max_reply: The same for the reply.
    """
    ids = [*trace.prompt_ids, *trace.token_ids]
    return _both_chips(ids, _owners(trace), len(trace.prompt_ids), tokenizer, max_prompt, max_reply)


def token_counts(trace: Any) -> dict[str, int]:
    """Tokens of each owner."""
    own = sum(1 for mine in trace.own_mask if mine)
    return {"prompt": len(trace.prompt_ids), "own": own, "injected": len(trace.own_mask) - own}


def token_strip(
    trace: Any,
    tokenizer: Any,
    *,
    max_prompt: int = 48,
    max_reply: int = 400,
    title: str | None = None,
) -> Sheet:
    """All tokens of one prompt and reply, coloured by who wrote them.

    The bar on top is the whole sequence to scale; the chips below spell it out.

    Args:
        trace, tokenizer, max_prompt, max_reply: See :func:`token_chips`.
        title: A heading.

    Returns:
        A matplotlib figure.
    """
    return _strip(
        token_chips(trace, tokenizer, max_prompt, max_reply), _owners(trace), OWNERS, title
    )


def loss_owners(example: Any, tokenizer: Any) -> list[str]:
    """Who wrote each token of an example: ``"own"`` carries loss; ``"prompt"`` (words of question and template),
    ``"picture"`` (of the question) and ``"injected"`` (regions put into the reply) do not.

    Args:
        example: One question and one reply, with ``ids`` and ``own`` as
            :class:`unireason_lib.training.encoding.Encoded` has them.
        tokenizer: Whatever has ``convert_tokens_to_ids(tokens)``.
    """
    of_pictures = set(tokenizer.convert_tokens_to_ids([VISION_START, IMAGE_TOKEN, VISION_END]))
    begin = _reply_begin(example)
    return [
        "own"
        if own
        else "prompt"
        if token not in of_pictures
        else "picture"
        if at < begin
        else "injected"
        for at, (token, own) in enumerate(
            zip(example.ids.tolist(), example.own.tolist(), strict=True)
        )
    ]


def loss_strip(
    example: Any,
    tokenizer: Any,
    *,
    max_prompt: int = 48,
    max_reply: int = 400,
    title: str | None = None,
) -> Sheet:
    """All tokens of an example to learn from, coloured by whether they carry loss.

    Args:
        example, tokenizer: See :func:`loss_owners`; the tokenizer also has ``decode(ids)``.
        max_prompt, max_reply: See :func:`token_chips`.
        title: A heading.

    Returns:
        A matplotlib figure.
    """
    owners, ids = loss_owners(example, tokenizer), example.ids.tolist()
    chips = _both_chips(ids, owners, _reply_begin(example), tokenizer, max_prompt, max_reply)
    return _strip(chips, owners, LOSS_OWNERS, title)


def chip_spans(chips: Iterable[Chip], looks: Mapping[str, Owner] = OWNERS) -> list:
    """The chips as text for :func:`unireason_lib.display.sheet.flow`.

    Args:
        chips: In order.
        looks: Owner -> its colours.
    """
    from unireason_lib.display.sheet import Span

    spans = []
    for chip in chips:
        owner = looks[chip.owner]
        if chip.left_out:
            spans.append(Span(chip.text, fill="white", color=MUTED, whole=True))
        else:
            spans.append(Span(chip.text, owner.fill, owner.edge, whole=True, bold=chip.picture))
    return spans


BAR_HEIGHT = 0.5


def draw_bar(sheet: Sheet, left: float, top: float, width: float, trace: Any) -> None:
    """The whole sequence to scale, with the legend and the counts above it (:data:`BAR_HEIGHT` inches)."""
    _draw_bar(sheet, left, top, width, _owners(trace), OWNERS)


def _draw_bar(
    sheet: Sheet,
    left: float,
    top: float,
    width: float,
    owners: Sequence[str],
    looks: Mapping[str, Owner],
) -> None:
    from unireason_lib.display.sheet import text_width

    counts = {name: owners.count(name) for name in looks}
    x = left
    for name, owner in looks.items():
        swatch = sheet.place(x, top + 0.03, 0.16, 0.13, bare=False)
        swatch.set(xticks=[], yticks=[], facecolor=owner.fill)
        for spine in swatch.spines.values():
            spine.set(color=owner.edge, linewidth=1.0)
        words = f"{owner.label}: {counts[name]:,}"
        sheet.write(x + 0.24, top + 0.02, words, 9)
        x += 0.24 + text_width(words) + 0.3
    axes = sheet.place(left, top + 0.28, width, 0.18)
    total = max(1, sum(counts.values()))
    axes.set(xlim=(0, total), ylim=(0, 1))
    stretches = _stretches(owners)
    for name, look in looks.items():
        pieces = [(start, length) for owner, start, length in stretches if owner == name]
        axes.broken_barh(pieces, (0, 1), facecolor=look.fill, edgecolor=look.edge, linewidth=0.7)


def token_strip_html(
    trace: Any, tokenizer: Any, *, max_prompt: int = 48, max_reply: int = 2000
) -> Html:
    """The strip of :func:`token_strip` as HTML, for notebooks that are open (text can be searched and copied).

    Colours are written into each element, because notebook viewers drop style sheets. Pages that drop these
    as well (GitHub) need the figure instead.

    Args:
        trace, tokenizer, max_prompt, max_reply: See :func:`token_chips`.

    Returns:
        A piece of HTML, a string that shows itself in a notebook. All text of the model is escaped.
    """
    counts = token_counts(trace)
    box = "display:inline-block;border-radius:4px;padding:0 3px;margin:1px;border:1px solid {};background:{};color:{}"
    legend = "".join(
        f'<span style="{box.format(owner.edge, owner.fill, INK)}">{escape(owner.label)}: {counts[name]:,}</span> '
        for name, owner in OWNERS.items()
    )
    chips = "".join(
        f'<span title="{escape(OWNERS[chip.owner].label)}, {chip.tokens} token{"s" * (chip.tokens != 1)}" style="'
        f"{box.format(OWNERS[chip.owner].edge, 'white' if chip.left_out else OWNERS[chip.owner].fill, INK)};"
        f'white-space:pre-wrap;overflow-wrap:anywhere">{escape(chip.text)}</span>'
        for chip in token_chips(trace, tokenizer, max_prompt, max_reply)
    )
    return Html(
        f'<div style="font:13px/1.7 ui-monospace,Menlo,Consolas,monospace;max-width:1000px">'
        f'<div style="font-family:system-ui,sans-serif;margin-bottom:4px">{legend}</div>{chips}</div>'
    )


class Html(str):
    """A string of HTML that a notebook shows as HTML."""

    def _repr_html_(self) -> str:
        return str(self)


def _owners(trace: Any) -> list[str]:
    """The owner of every token of a prompt and its reply."""
    return ["prompt"] * len(trace.prompt_ids) + [
        "own" if own else "injected" for own in trace.own_mask
    ]


def _reply_begin(example: Any) -> int:
    """Where the reply of an example begins: at its first own token."""
    return int(example.own.argmax()) if example.own.any() else len(example.own)


def _strip(
    chips: Sequence[Chip], owners: Sequence[str], looks: Mapping[str, Owner], title: str | None
) -> Sheet:
    """The bar with its legend, and the chips below."""
    from unireason_lib.display.sheet import WIDTH, Sheet, columns_in, draw_runs, flow, height_inches

    size, margin = 8, 0.12
    width = WIDTH - 2 * margin
    runs = flow(chip_spans(chips, looks), columns_in(width, size))
    head = margin + (0.3 if title else 0.0)
    line = 1.8
    sheet = Sheet(WIDTH, head + BAR_HEIGHT + 0.12 + height_inches(runs, size, line) + margin)
    if title:
        sheet.write(margin, margin, title, 11, fontweight="bold")
    _draw_bar(sheet, margin, head, width, owners, looks)
    draw_runs(sheet, margin, head + BAR_HEIGHT + 0.12, width, runs, size, line)
    return sheet


def _stretches(owners: Sequence[str]) -> list[tuple[str, int, int]]:
    """``(owner, first token, tokens)`` of every stretch with one owner."""
    stretches: list[tuple[str, int, int]] = []
    for i, owner in enumerate(owners):
        if stretches and stretches[-1][0] == owner:
            stretches[-1] = (owner, stretches[-1][1], stretches[-1][2] + 1)
        else:
            stretches.append((owner, i, 1))
    return stretches


def _both_chips(
    ids: Sequence[int],
    owners: Sequence[str],
    begin: int,
    tokenizer: Any,
    max_prompt: int,
    max_reply: int,
) -> list[Chip]:
    """Chips of prompt and reply, each shortened by itself; the reply begins at token ``begin``."""
    prompt = _chips(ids[:begin], owners[:begin], tokenizer)
    reply = _chips(ids[begin:], owners[begin:], tokenizer)
    return [*_shortened(prompt, max_prompt), *_shortened(reply, max_reply)]


def _chips(ids: Sequence[int], owners: Sequence[str], tokenizer: Any) -> list[Chip]:
    """One chip a token, one a run of pictures; bytes of one character that are spread over tokens are put together."""
    known: dict[tuple[int, ...], str] = {}

    def decode(*tokens: int) -> str:
        if tokens not in known:
            known[tokens] = tokenizer.decode(list(tokens))
        return known[tokens]

    chips: list[Chip] = []
    i = 0
    while i < len(ids):
        end, pictures = _pictures(ids, owners, i, decode)
        if pictures:
            chips.append(Chip(_picture_words(pictures), owners[i], end - i, picture=True))
        else:
            end = i + 1
            while (
                decode(*ids[i:end]).endswith("\ufffd")
                and end < min(i + 4, len(ids))
                and owners[end] == owners[i]
            ):
                end += 1
            if "\ufffd" in decode(*ids[i:end]):
                end = i + 1
            chips.append(Chip(_visible(decode(*ids[i:end])), owners[i], end - i))
        i = end
    return chips


def _pictures(
    ids: Sequence[int], owners: Sequence[str], start: int, decode: Any
) -> tuple[int, list[int]]:
    """Where the pictures that begin at ``start`` end, and the tokens of each (delimiters not counted)."""
    counts: list[int] = []
    i = start
    while i < len(ids) and owners[i] == owners[start]:
        j = i + (decode(ids[i]) == VISION_START)
        first = j
        while j < len(ids) and owners[j] == owners[start] and decode(ids[j]) == IMAGE_TOKEN:
            j += 1
        if j == first:
            break
        counts.append(j - first)
        i = j + (j < len(ids) and owners[j] == owners[start] and decode(ids[j]) == VISION_END)
    return i, counts


def _picture_words(counts: Sequence[int]) -> str:
    if len(counts) == 1:
        return f"image × {counts[0]}"
    if len(set(counts)) == 1:
        return f"{len(counts)} images × {counts[0]}"
    return f"{len(counts)} images, {sum(counts)} tokens"


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace("\t", "⇥") or "∅"


def _shortened(chips: list[Chip], limit: int) -> list[Chip]:
    """The first third and the last two thirds of ``limit`` chips; what lies between is counted.

    Pictures in between stay, if they are few: they are what the reader looks for.
    """
    if len(chips) <= limit:
        return chips
    head = max(1, limit // 3)
    tail = max(1, limit - head)
    middle = chips[head:-tail]
    pictures = [i for i, chip in enumerate(middle) if chip.picture]
    shown: list[Chip] = []
    start = 0
    for i in [*(pictures if len(pictures) <= 3 else []), len(middle)]:
        if left := sum(chip.tokens for chip in middle[start:i]):
            shown.append(Chip(f"… {left:,} tokens …", middle[start].owner, left, left_out=True))
        shown += middle[i : i + 1]
        start = i + 1
    return [*chips[:head], *shown, *chips[-tail:]]
