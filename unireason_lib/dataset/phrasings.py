"""The words of the questions: several phrasings of every kind, for pictures and for volumes.

Braces are filled in: ``{a}``, ``{b}`` a structure with its article ("the left kidney"), ``{A}`` the same at
the beginning of a sentence, ``{here}`` where to look ("in this picture", "in this CT volume"), ``{it}`` what
is shown ("picture", "volume"); the rest is named where the kind is made, in
:mod:`unireason_lib.dataset.questions`. Which phrasing is taken never depends on the answer.
"""

from __future__ import annotations

HERE: dict[str, tuple[str, ...]] = {
    "2d": ("in this picture", "in this image", "in this {modality} picture", "in the {modality} image"),
    "3d": ("in this volume", "in this scan", "in this {modality} volume", "in the {modality} scan"),
}
IT: dict[str, tuple[str, ...]] = {"2d": ("picture", "image"), "3d": ("volume", "scan")}

PHRASINGS: dict[str, tuple[str, ...]] = {
    # structure localization
    "box": (
        "Which of these boxes encloses {a} {here}? {form}",
        "Where is {a} {here}? Choose its bounding box. {form}",
        "Which box fits {a} best {here}? {form}",
        "Locate {a} {here}: which box outlines it? {form}",
        "Only one of these boxes was drawn around {a} {here}. Which? {form}",
        "Which coordinates belong to {a} {here}? {form}",
        "Find {a} {here} and choose the box around it. {form}",
        "{A} is to be marked {here}. Which box is correct? {form}",
    ),
    "name": (
        "Which structure does the box {region} enclose {here}? {form}",
        "What is outlined by {region} {here}? {form}",
        "A box is drawn at {region} {here}. Which structure fills it? {form}",
        "Which structure has the bounding box {region} {here}? {form}",
        "Name the structure inside {region} {here}. {form}",
        "Look at {region} {here}. What do you see there? {form}",
        "The coordinates {region} mark a structure {here}. Which? {form}",
    ),
    # spatial localization
    "quadrant": (
        "In the patient's terms, where does {a} lie, seen from the middle of the {it}?",
        "Seen from the middle of this {it}, in which direction does {a} lie, in patient terms?",
        "Which quarter of the {it} holds the centre of {a}, named by the patient's own directions?",
        "Where is {a} relative to the centre of the {it}? Use the patient's directions.",
        "In patient terms, towards which sides of the {it} is {a} displaced?",
        "{A} is off the middle of the {it}. In which directions, in the patient's terms?",
        "Taking the patient's own sides, in which part of the {it} is the centre of {a}?",
    ),
    "cell": (
        "A grid of {n} rows and {n} columns is laid over the {plane}. Which cell holds the centre of {a}? {form}",
        "Divide the {plane} into {n} x {n} equal cells. In which one is the centre of {a}? {form}",
        "With {n} rows and {n} columns over the {plane}, where is the middle of {a}? {form}",
        "In which cell of a {n} x {n} grid over the {plane} does {a} have its centre? {form}",
        "The {plane} is cut into {n} rows and {n} columns. Locate the centre of {a}. {form}",
        "Which row and column of a {n} x {n} grid over the {plane} contain the centre of {a}? {form}",
    ),
    "height": (
        "The slices are divided into four equal stacks, counted from the first slice. Which holds the centre of {a}?",
        "In which quarter of the slices, counted from the first one, is the centre of {a}?",
        "Counting from the first slice, which quarter of the {it} contains the middle of {a}?",
        "Along the slices, where does {a} have its centre?",
        "Cut the stack of slices into quarters from the first to the last. Where is the centre of {a}?",
        "Which quarter of the slices would you open to see the centre of {a}?",
    ),
    # existence verification
    "pair": (
        "Can the {a} and the {b} be seen {here}?",
        "Which of the two can be seen {here}, the {a} or the {b}?",
        "Check {here} for the {a} and for the {b}. Which are there?",
        "Are there a {a} and a {b} {here}?",
        "Look for the {a} and the {b} {here}. What do you find?",
        "Is the {a} visible {here}, and is the {b}?",
        "Does this {it} show the {a}, and does it show the {b}?",
    ),
    "present": (
        "Which of these can be seen {here}?",
        "Only one of these is visible {here}. Which?",
        "Which of the following does this {it} show?",
        "Three of these are missing {here}. Which is there?",
        "Which of these structures do you find {here}?",
        "Look for each of these {here}. Which is present?",
        "Which structure of this list is present {here}?",
    ),
    "absent": (
        "Which of these can not be seen {here}?",
        "Only one of these is missing {here}. Which?",
        "Which of the following does this {it} not show?",
        "Three of these are visible {here}. Which is not?",
        "Which of these structures is absent {here}?",
        "Look for each of these {here}. Which do you not find?",
        "Which structure of this list is not present {here}?",
    ),
    "count": (
        "How many lesions can be seen {here}?",
        "Count the lesions {here}.",
        "Are there lesions {here}, and how many?",
        "What is the number of lesions {here}?",
        "How many separate lesions does this {it} show?",
        "Does this {it} show any lesion, and if so how many?",
    ),
    # size comparison
    "largest": (
        "Which of these has the largest {measure} {here}?",
        "Which structure is the largest {here}, by {measure}?",
        "Compare the {measure} of these {here}. Which is largest?",
        "By {measure}, which of the following is biggest {here}?",
        "Of these four, which takes up the most {measure} {here}?",
        "Which of these exceeds the other three in {measure} {here}?",
    ),
    "smallest": (
        "Which of these has the smallest {measure} {here}?",
        "Which structure is the smallest {here}, by {measure}?",
        "Compare the {measure} of these {here}. Which is smallest?",
        "By {measure}, which of the following is least {here}?",
        "Of these four, which takes up the least {measure} {here}?",
        "Which of these falls short of the other three in {measure} {here}?",
    ),
    "ratio": (
        "How does the {measure} of {a} compare with that of {b} {here}?",
        "Compare {a} and {b} {here} by {measure}.",
        "What is the relation between the {measure} of {a} and that of {b} {here}?",
        "By {measure}, which is larger {here}, {a} or {b}, and by how much?",
        "Measured {here}, how large is {a} against {b}, by {measure}?",
        "Which statement about the {measure} of {a} and {b} holds {here}?",
    ),
    "extent": (
        "The {plane} is {width} mm wide. How long is the longer side of the bounding box of {a}?",
        "How far does {a} extend along the longer side of its bounding box, if the {plane} is {width} mm wide?",
        "With a {plane} width of {width} mm, what is the longer extent of {a}?",
        "{A} is measured along the longer side of its box. What is found, given that the {plane} spans {width} mm?",
        "From edge to edge the {plane} spans {width} mm. What is the longer extent of {a} in its plane?",
        "What is the larger of height and width of {a}, when {width} mm is the width of the {plane}?",
    ),
    # spatial relationship
    "relation": (
        "Where does {a} lie relative to {b} {here}, in patient terms?",
        "Seen from {b}, in which direction is {a} {here}? Use the patient's directions.",
        "In the patient's terms, how is {a} placed with respect to {b} {here}?",
        "In which direction would you go from {b} to reach {a} {here}, in patient terms?",
        "What is the position of {a} as seen from {b} {here}, in the patient's directions?",
        "Compare the centres of {a} and {b} {here}. Where is the former, in patient terms?",
        "Taking the patient's own sides, where is {a} in relation to {b} {here}?",
    ),
    "clock": (
        "A clock face is laid over the {plane} with its centre on {b}, 12 at the top. At which hour is {a}?",
        "Seen from {b}, at which hour of a clock face over the {plane} does {a} lie (12 is up)?",
        "With {b} at the middle of a clock face and 12 at the top of the {plane}, where is the centre of {a}?",
        "In which clock direction of {b} is {a} on the {plane}? The top is 12 o'clock.",
        "Give the direction from {b} to {a} on the {plane} as an hour, 12 being straight up.",
        "On the {plane}, {a} lies in one direction from {b}. Which hour of the clock is it, if up is 12?",
    ),
    "which side": (
        "Which of these lies {direction} {b} {here}?",
        "In patient terms, which structure is {direction} {b} {here}?",
        "Only one of these is {direction} {b} {here}. Which?",
        "Compare centres {here}: which of these lies {direction} {b}?",
        "Looking from {b} {here}, which of the following lies {direction} it?",
        "Which structure has its centre {direction} that of {b} {here}?",
    ),
    # lesion analysis
    "texture": (
        "What texture does {a} have?",
        "Look closely at {a}. Which texture does it show?",
        "Which pattern fills {a} {here}?",
        "How would you describe the fine structure of {a}?",
        "Zooming in on {a}, which texture do you see?",
        "Which of these textures is that of {a} {here}?",
        "The inside of {a} has a fine pattern. Which?",
    ),
    "density": (
        "Which description fits {a}, compared with the tissue around it?",
        "How does {a} appear {here}? Density is meant against its surroundings.",
        "Which of these describes {a} {here}?",
        "Compared with its surroundings, {a} is which of these?",
        "What are density and {other} of {a}?",
        "Judge {a} by density and {other}. Which holds?",
        "Describe {a} {here}: which combination holds?",
    ),
    "size class": (
        "Which description of size and {other} fits {a}?",
        "How large is {a}, and what is its {other}?",
        "Judge {a} by size and {other}. Which holds?",
        "Which combination of size and {other} describes {a} {here}?",
        "What are size and {other} of {a}?",
        "Looking at {a}, which of these fits in size and {other}?",
    ),
    "host": (
        "In which organ is {a}?",
        "Which structure contains {a} {here}?",
        "Where is {a} seated?",
        "Which organ hosts {a} {here}?",
        "{A} lies inside one of these. Which?",
        "To which organ does {a} belong?",
        "Which of these organs is affected by {a}?",
    ),
    "place": (
        "In which part of {b} does {a} lie, in patient terms?",
        "Seen from the centre of {b}, where is {a}, in the patient's directions?",
        "Where within {b} is {a} found, in patient terms?",
        "Which part of {b} holds {a}, named by the patient's own sides?",
        "How is {a} placed inside {b}, in patient terms?",
        "Relative to the middle of {b}, towards which sides does {a} lie in the patient?",
    ),
}

BOX_FORM: dict[tuple[str, bool], tuple[str, ...]] = {
    ("2d", True): ("Boxes are [x1,y1,x2,y2] in pixels.", "Coordinates: [x1,y1,x2,y2], pixels."),
    ("3d", True): (
        "Boxes are [x1,y1,z1,x2,y2,z2], z counts slices.",
        "Coordinates: [x1,y1,z1,x2,y2,z2], in pixels and slices.",
    ),
    ("2d", False): (
        "Boxes are [x1,y1,x2,y2] in percent of width and height.",
        "Coordinates: [x1,y1,x2,y2], percent.",
    ),
    ("3d", False): (
        "Boxes are [x1,y1,z1,x2,y2,z2] in percent of width, height and number of slices.",
        "Coordinates: [x1,y1,z1,x2,y2,z2], percent, z along the slices.",
    ),
}
"""(dimension, in pixels of the frame) -> how the coordinates in a question are to be read."""

CELL_FORM = ("Cells are counted in reading order.", "Count rows from the top, columns in reading direction.")
