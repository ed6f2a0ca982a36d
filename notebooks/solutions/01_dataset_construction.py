"""Solutions of notebook 01. Run it, ``python notebooks/solutions/01_dataset_construction.py``, or
import its functions."""

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np

from unireason_lib.dataset import phantom, phantom_slice
from unireason_lib.dataset.questions import Question, ask, learn_prior, question_only_baseline
from unireason_lib.dataset.sources import open_source
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS, ORGANS
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.io import write_json

FRAME = ProcessorFrame(8, 2, min_pixels=32**2, max_pixels=128**2)


def accuracy_of_counts(questions: list[Question]) -> float:
    """Exercise 1: accuracy of a baseline that counts. Of the options it takes the one that was right
    most often, for other patients, in questions of the same kind whose words name the same organs.
    It may use only what is shown with a question: ``q.names`` and ``q.evidence`` depend on the
    answer."""

    def words(q: Question) -> tuple:
        return q.kind, *(
            organ for organ in ORGANS if organ in f"{q.text} {sorted(q.options.values())}"
        )

    right = defaultdict(Counter)
    for q in questions:
        right[words(q)][q.truth, q.patient] += 1
    correct = []
    for q in questions:
        counts = Counter()
        for (text, patient), n in right[words(q)].items():
            counts[text] += n * (patient != q.patient)
        correct.append(max(q.options.values(), key=lambda text: counts[text]) == q.truth)
    return float(np.mean(correct))


def kept_by_kind(plain: list[Question], debiased: list[Question]) -> dict[str, float]:
    """Exercise 2: the proportion of each kind of question that is left, lowest first. Kinds on which
    nearly all patients agree disappear (where an organ lies, which of two is wider); kinds about
    lesions, which can lie anywhere, stay, and take the places of others (more than 1)."""
    before, after = (Counter(q.kind for q in some) for some in (plain, debiased))
    return dict(sorted(((kind, after[kind] / n) for kind, n in before.items()), key=lambda p: p[1]))


def questions_about_folder(path: str | Path) -> list[Question]:
    """Exercise 3: questions about all scans of ``path/images``, with the label maps of the same
    names in ``path/labels`` and the names of their values in ``path/names.json``."""
    return [question for study in open_source("folder", path) for question in ask(View(study))]


if __name__ == "__main__":
    views = [View(phantom_slice(k), (8, 64, 64), frame=FRAME) for k in range(120)]
    prior = learn_prior(View(phantom_slice(k), (8, 64, 64), frame=FRAME) for k in range(9000, 9120))
    plain, debiased = ([q for v in views for q in ask(v, prior=p)] for p in (None, prior))
    for name, questions in (("as they come", plain), ("debiased", debiased)):
        library = question_only_baseline(questions)["all"].accuracy
        print(f"1. {name}: {accuracy_of_counts(questions):.0%} by counts, {library:.0%} by words")
    print("2. left:", {kind: f"{part:.0%}" for kind, part in kept_by_kind(plain, debiased).items()})
    folder, study = Path(tempfile.mkdtemp()), phantom(902, shape=(16, 128, 128))
    write_json(folder / "names.json", {"names": LABELS, "inside": INSIDE, "modality": "CT"})
    for kind, array in (("images", study.scan.array), ("labels", study.labels)):
        (folder / kind).mkdir()
        nib.save(nib.Nifti1Image(array.T, study.scan.affine), folder / kind / "a.nii")
    print("3.", questions_about_folder(folder)[0].text)
