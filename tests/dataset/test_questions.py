"""Questions: answers are checked against the masks by other means, nothing can be read off the
words, and only what the images show is asked about."""

import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from unireason_lib.dataset import questions as asking
from unireason_lib.dataset.checks import leaked
from unireason_lib.dataset.questions import FAMILIES, AnswerPrior, ask, learn_prior
from unireason_lib.dataset.sources.phantom import PhantomConfig, phantom, phantom_slice
from unireason_lib.dataset.study import Study
from unireason_lib.dataset.view import View
from unireason_lib.evaluation.statistics import interval

from .conftest import FRAME

ABOUT = {"id": "s", "patient": "p", "source": "made", "modality": "CT"}
KINDS = [kind for kinds in FAMILIES.values() for kind in kinds]
SIDES = {"left": (0, 1), "right": (0, -1), "posterior": (1, 1), "anterior": (1, -1)}
SIDES |= {"superior": (2, 1), "inferior": (2, -1)}


def view_of(study, size=(8, 64, 64)) -> View:
    return View(study, size, None, FRAME)


def many(view, seeds=20, **how):
    """The questions of several seeds."""
    return [q for seed in range(seeds) for q in ask(view, seed=seed, **how)]


@pytest.fixture(scope="module")
def views():
    varied = PhantomConfig(variation=1.0)
    slices = [view_of(phantom_slice(k, config=varied)) for k in range(400)]
    return {"2d": slices, "3d": [view_of(phantom(k)) for k in range(300)]}


@pytest.fixture(scope="module")
def priors(views):
    return {d: learn_prior(some[: len(some) // 2]) for d, some in views.items()}


def masks_study(*boxes, names=None, shape=(60, 80), **about):
    """A study of rectangles or cuboids given as (x1, y1[, z1], x2, y2[, z2]); the scan is noise."""
    masks, n = [], len(shape)
    for k, box in enumerate(boxes):
        mask = np.zeros(shape, bool)
        mask[tuple(slice(box[axis], box[axis + n]) for axis in reversed(range(n)))] = True
        masks.append(((names or "abcdefgh")[k], mask))
    scan = np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)
    return Study.from_masks(masks, scan=scan, **{**ABOUT, **about})


FIVE = ((5, 5, 20, 15), (50, 8, 70, 30), (10, 35, 18, 50), (40, 40, 46, 44), (60, 42, 74, 57))
ORGANS = ["liver", "spleen", "aorta", "stomach", "heart"]


class Oracle:
    """Judges an option by looking at the label map only; slow and obvious."""

    def __init__(self, view):
        self.study, self.labels = view.study, view.study.labels
        self.grid = np.array(self.labels.shape[::-1])

    def structure(self, phrase):
        phrase = phrase.lower().removeprefix("the ")
        lesions = sorted(self.study.lesions, key=lambda s: s.voxels)
        if phrase in ("lesion", "largest lesion", "smallest lesion"):
            return lesions[0 if "smallest" in phrase else -1]
        if match := re.fullmatch("lesion in the (.+)", phrase):
            return next(s for s in lesions if s.attributes["host"] == match[1])
        return self.study.find(phrase)

    def measure(self, phrase):
        """Centre, corners and extents of a structure in voxels of x, y (and z)."""
        where = np.argwhere(np.isin(self.labels, self.structure(phrase).values))[:, ::-1]
        low, high = where.min(axis=0), where.max(axis=0) + 1
        return where.mean(axis=0) + 0.5, np.concatenate([low, high]), high - low

    def there(self, name):
        named = (s for s in self.study.structures if s.name == name)
        return any(np.isin(self.labels, s.values).any() for s in named)

    def right(self, q, option):
        """Whether an option is true."""
        names, said = q.names, option.lower()
        centre, _, size = self.measure(names[0]) if names else (None, None, None)
        if q.kind in ("box", "structure"):
            box, name = (option, names[0]) if q.kind == "box" else (q.facts["box"], option)
            scale = np.array([64, 64, 8])[: len(self.grid)] / self.grid
            written = np.array(re.findall(r"\d+", box), int)
            return np.abs(written - self.measure(name)[1] * np.tile(scale, 2)).max() <= 1
        if q.kind in ("quadrant", "relation", "place"):
            gap = centre - (self.grid / 2 if q.kind == "quadrant" else self.measure(names[1])[0])
            return all(gap[SIDES[w][0]] * SIDES[w][1] > 0 for w in said.split(" and "))
        if q.kind == "level":
            return ("first", "second", "third", "last")[int(4 * centre[2] / self.grid[2])] in said
        if q.kind == "pair":
            one, two = q.facts["searched"]
            states = "neither", f"only {two}", f"only {one}", "both"
            return states[2 * self.there(one[4:]) + self.there(two[4:])] == said
        if q.kind == "count":
            return ("none", "one", "two", "three")[len(self.study.lesions)] == said
        if q.kind in ("span", "offset", "extent"):
            scale, dims = np.array([64, 64]) / self.grid[:2], len(self.grid)
            middles = [self.measure(name)[1].reshape(2, dims).mean(axis=0) for name in names]
            true = {"span": size[0] * scale[0], "extent": max(size[:2] * scale)}
            true["offset"] = abs(middles[0] - middles[-1])[0] * scale[0]
            return abs(int(re.findall(r"\d+", said)[0]) - true[q.kind]) < 1.5
        attributes = self.structure(names[0]).attributes
        if q.kind == "host":
            return said == f"the {attributes['host']}"
        return set(said.split(" and ")) <= {attributes["texture"], attributes["density"]}


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("d", ["2d", "3d"])
def test_exactly_the_answer_is_true_by_the_masks(views, priors, d, with_prior):
    prior = priors[d] if with_prior else None
    kinds = set()
    for view in views[d][-80:]:
        oracle = Oracle(view)
        for q in ask(view, per_family=2, prior=prior):
            right = [letter for letter, text in q.options.items() if oracle.right(q, text)]
            assert right == [q.answer] and q.kind in FAMILIES[q.family], q
            kinds.add(q.kind)
    never = {"level"} if d == "2d" else set()
    if with_prior:  # in one slice two or three lesions are next to impossible
        never |= {"structure", "count"} if d == "2d" else {"structure"}
    assert set(KINDS) - kinds <= never


@pytest.mark.parametrize("d", ["2d", "3d"])
def test_every_question_is_well_formed(views, priors, d):
    letters = Counter()
    for k, view in enumerate(views[d][::2]):
        questions = ask(view, per_family=2, prior=priors[d] if k % 3 == 0 else None)
        assert len({q.id for q in questions}) == len(questions)
        for q in questions:
            assert list(q.options) == list("ABCD") and len(set(q.options.values())) == 4
            assert q.dimension == d and len(q.names) == len(q.evidence) <= 3
            assert not re.search(r"[{}]|picture", q.text + "".join(q.options.values()))
            assert not leaked(q.text, q.options, q.answer)
            assert all(s in view.study.structures and view.visible(s) for s in q.evidence)
            percents = re.findall(r"([\d.]+) %", str(q.options))
            assert all(float(percent) <= 100 for percent in percents)
            if re.search(r"\bmm\b", str(q.options)):  # a measure needs the spacing in the question
                spacing = zip(view.study.shape[::-1], view.study.spacing[::-1], strict=True)
                spans = [round(n * mm) for n, mm in spacing][:2]
                assert all(f"{span} mm" in q.text for span in spans)
            letters[q.answer] += 1
    total = sum(letters.values())
    chi2 = sum((letters[letter] - total / 4) ** 2 / (total / 4) for letter in "ABCD")
    assert total > 1250 and chi2 < 16.3  # p = 0.001 with three degrees of freedom


@pytest.mark.parametrize("d", ["2d", "3d"])
def test_the_centres_that_a_rationale_states_are_on_the_sides_that_it_names(views, d):
    families = ["spatial localization", "spatial relationship", "lesion analysis"]
    asked = [q for view in views[d][:60] for q in ask(view, per_family=3, families=families)]
    asked = [q for q in asked if "sides" in q.facts]
    for q in asked:
        for k, side in enumerate(q.facts["sides"], start=1):
            (axis, sign), count = SIDES[side], q.facts[f"all{k}"].split()[0]
            assert count == ("8" if axis == 2 else "64")
            here, there = q.facts[f"a{k}"], q.facts[f"b{k}"]
            assert q.kind != "quadrant" or there == int(count) // 2
            assert (here - there) * sign > 0, q
    assert {q.kind for q in asked} == {"quadrant", "relation", "place"}


def test_b2_what_no_plane_shows_is_neither_asked_about_nor_called_absent():
    """Fault B2: a lesion of five slices falls between the planes when 300 slices become 8."""
    lows = zip(FIVE, (9, 99, 170, 40, 70), strict=True)
    boxes = [(*box[:2], z, *box[2:], z + 120) for box, z in lows]
    names = [*ORGANS, "lung nodule"]
    more = {"vocabulary": (*names, "bladder", "bowel cyst", "colon", "uterus")}
    study = masks_study(*boxes, (30, 5, 150, 42, 17, 155), names=names, shape=(300, 60, 80), **more)
    few, all_of = (many(view_of(study, (n, 60, 80)), 40, per_family=2) for n in (8, 150))
    assert "nodule" not in str(few) and "nodule" in str(all_of)
    assert not {"lesion analysis", "count"} & {x for q in few for x in (q.family, q.kind)}


def test_b13_answers_do_not_depend_on_the_spacing_or_shape_of_voxels():
    """Fault B13: directions were measured in voxels of an anisotropic grid."""
    boxes = [(5, 5, 1, 20, 15, 4), (50, 8, 6, 70, 30, 9)]
    boxes += [(10, 35, 2, 18, 50, 5), (60, 42, 10, 74, 57, 14)]
    families, asked = ["spatial localization", "spatial relationship", "size comparison"], []
    for stretch in (1, 4):  # along y
        tall = [np.multiply(box, (1, stretch, 1) * 2).tolist() for box in boxes]
        about = {"names": ORGANS, "directions": "LPS", "shape": (16, 60 * stretch, 80)}
        view = view_of(masks_study(*tall, **about), (16, 60, 80))
        asked.append([(q.text, q.options) for q in many(view, families=families)])
    assert asked[0] == asked[1] and len(asked[0]) >= 40


def test_no_lesion_is_counted_only_where_all_are_outlined():
    """A scan in which only kidney cysts were looked for was said to show no lesion."""
    study = masks_study(*FIVE, names=ORGANS, vocabulary=(*ORGANS, "left kidney cyst"))
    for known, truths in ((False, set()), (True, {"None"})):
        view = view_of(replace(study, all_lesions=known))
        questions = many(view, families=["existence verification"], per_family=2)
        assert {q.truth for q in questions if q.kind == "count"} == truths


def test_without_orientation_there_are_no_sides():
    study = masks_study(*FIVE, names=ORGANS)
    questions = many(view_of(study), 40, per_family=3)
    assert {q.kind for q in questions} == {"box", "structure", "span", "extent"}
    words = str([(q.text, q.options, q.facts) for q in questions])
    assert not re.search(r"\b(anterior|posterior|patient)\b", words)


def test_laterality_is_the_patients():
    # high x is the patient's left in L-P-S: the right half of the image
    boxes, names = [(30, 8, 1, 36, 14, 3), (4, 26, 1, 10, 32, 3)], ["one", "two"]
    study = masks_study(*boxes, names=names, shape=(4, 40, 40))
    families = ["spatial localization", "spatial relationship"]
    for letters, sides in (("LPS", "Left and anterior"), ("RAS", "Right and posterior")):
        asked = many(view_of(replace(study, directions=letters)), per_family=2, families=families)
        asked = [q for q in asked if q.names[0] == "the one" and q.kind != "level"]
        assert {(q.kind, q.truth) for q in asked} == {("relation", sides), ("quadrant", sides)}


@pytest.mark.parametrize("d", ["2d", "3d"])
def test_poor_studies_give_fewer_questions_and_no_crash(d):
    shape = (40, 50) if d == "2d" else (10, 40, 50)
    poor = {
        "nothing": (["a"], (0, 0, 0, 0)),
        "one pixel": (["lung nodule"], (3, 3, 4, 4)),
        "one structure": (["a"], (5, 5, 20, 15)),
        "one name twice": (["nodule"] * 2, (5, 5, 20, 15), (30, 22, 44, 33)),
        "at borders": ("abcd", (0, 0, 10, 10), (40, 0, 50, 12), (0, 25, 9, 40), (20, 15, 30, 25)),
    }
    asked = defaultdict(list)
    for case, (names, *boxes) in poor.items():
        lifted = boxes if d == "2d" else [(*b[:2], 2, *b[2:], 5) for b in boxes]
        study = masks_study(*lifted, names=names, shape=shape)
        placed = replace(study, spacing=(1.0,) * len(shape), directions="LPS"[: len(shape)])
        for view in (view_of(study, (10, 40, 50)), view_of(placed, (10, 40, 50))):
            asked[case] += many(view, 12, per_family=2)
    assert asked["one structure"] and not asked["nothing"] + asked["one pixel"]
    sized = [q for q in asked["at borders"] if q.family == "size comparison"]
    assert {s.name for q in sized for s in q.evidence} <= {"d"}  # the only one that is whole


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("d", ["2d", "3d"])
def test_a_study_has_the_same_questions_whatever_is_asked_beside_it(views, priors, d, with_prior):
    how = {"per_family": 3, "prior": priors[d] if with_prior else None}
    view, *others = views[d][-7:]
    every, _ = ask(view, **how), [ask(other, **how) for other in others]
    again = ask(view_of(replace(view.study)), **how)  # nothing is known of this one yet
    assert ask(view, **how) == again == every != ask(view, **how, seed=1)


def test_a_prior_balances_a_lopsided_fact(tmp_path):
    """The spleen lies left of the liver in nine patients of ten, above or below it."""
    some = []
    for k in range(200):
        liver, spleen = (20, 4) if k % 10 == 0 else (4, 20)
        z = 0 if k % 20 < 10 else 5
        boxes = [(liver, 4, 2, liver + 8, 12, 4), (spleen, 16, z, spleen + 8, 24, z + 2)]
        about = {"names": ["liver", "spleen"], "shape": (8, 32, 32), "directions": "LPS"}
        some.append(view_of(masks_study(*boxes, id=f"s{k}", **about)))
    whole, parts = learn_prior(some), [learn_prior(some[25:]), learn_prior(some[:25])]
    whole.save(tmp_path / "prior.json")
    assert whole == AnswerPrior.merged(parts) == AnswerPrior.load(tmp_path / "prior.json")
    for prior, low, high in ((None, 0.8, 1.0), (whole, 0.3, 0.7)):
        asked = [q for v in some for q in ask(v, families=["spatial relationship"], prior=prior)]
        asked = [q for q in asked if re.match("(Left|Right) and (sup|inf)erior", q.truth)]
        usual = [(q.names[0] == "the spleen") == q.truth.startswith("Left") for q in asked]
        assert len(usual) > 30 and low < np.mean(usual) < high


def test_a_reader_who_never_looks_stays_near_chance_only_with_a_prior(views, priors):
    halves = {d: some[len(some) // 2 :] for d, some in views.items()}
    plain = [q for some in halves.values() for v in some for q in ask(v)]

    def low(score):
        return interval(score.correct[None], score.patients).low

    assert low(asking.question_only_baseline(plain, epochs=3)["all"]) > 0.37
    pairs = [(view, priors[d]) for d, some in halves.items() for view in some]
    kept = [q for view, prior in pairs for q in ask(view, prior=prior, per_family=2)]
    scores = asking.question_only_baseline(kept, epochs=3)
    assert scores["all"].questions > 1000
    assert scores["all"].accuracy < 0.32 and set(scores) <= {"all", *FAMILIES}
    assert all(low(s) < 0.3 for s in scores.values() if s.questions > 60), scores
