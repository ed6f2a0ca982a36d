"""Phantoms: reproducible, anatomically placed, truthful, varied, fast, and with textures that only a close
look tells."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset import (
    IndexedSource,
    PhantomConfig,
    PhantomSource,
    patients,
    phantom,
    phantom_slice,
)
from unireason_lib.dataset.sources import phantom as module  # the module: functions are exported one level up
from unireason_lib.dataset.sources.phantom import (
    DEFAULT,
    HOSTS,
    LABELS,
    ORGANS,
    REMOVABLE,
    SIZES,
    TEXTURES,
    texture_pattern,
)
from unireason_lib.errors import DatasetError

CLEAN = PhantomConfig(noise=(0, 0), field=(0, 0))


@pytest.fixture(scope="module")
def clinic():
    """Forty patients."""
    return list(patients(0, 40))


def test_a_seed_gives_the_same_study_whatever_else_is_made(clinic):
    again = phantom(17)
    assert (again.scan.array == clinic[17].scan.array).all() and (again.labels == clinic[17].labels).all()
    assert again.structures == clinic[17].structures
    assert again.patient == "phantom-000017"
    assert len({study.scan.array.tobytes() for study in clinic}) == len(clinic)


@pytest.mark.parametrize("config", [DEFAULT, replace(DEFAULT, shape=(5, 41, 63))], ids=["even", "odd"])
def test_a_slice_made_alone_is_the_slice_of_the_volume(config):
    for seed in range(6):
        volume = phantom(seed, config=config)
        for alone in (
            phantom_slice(seed, config=config),
            phantom_slice(seed, z=seed % config.shape[0], config=config),
        ):
            cut = volume.slice(alone.details["z"])
            assert (alone.scan == cut.scan).all() and (alone.labels == cut.labels).all()
            for what in (
                "id",
                "patient",
                "structures",
                "absent",
                "directions",
                "details",
                "window",
                "license",
                "source",
            ):
                assert getattr(alone, what) == getattr(cut, what), what
            np.testing.assert_allclose(alone.spacing, cut.spacing)


def test_the_default_slice_shows_a_lesion_when_there_is_one():
    for seed in range(60):
        assert bool(phantom_slice(seed).lesions) == bool(phantom(seed).lesions)


def test_volumes_are_hounsfield_units_in_lps(clinic):
    import nibabel as nib

    study = clinic[0]
    assert study.scan.array.dtype == np.int16 and study.labels.dtype == np.uint8 and study.directions == "LPS"
    assert nib.aff2axcodes(study.scan.affine) == ("L", "P", "S")
    np.testing.assert_allclose(study.spacing, (300 / 8, 340 / 64, 340 / 64))
    np.testing.assert_allclose(study.scan.affine @ [31.5, 31.5, 3.5, 1], [0, 0, 0, 1], atol=1e-9)
    air = study.scan.array[study.labels == 0]
    assert abs(np.median(air) + 1000) < 30
    assert -860 < np.median(study.scan.array[study.labels == ORGANS["left lung"]]) < -780
    assert np.median(study.scan.array[study.labels == ORGANS["spine"]]) > 200


def test_organs_lie_where_they_do_in_a_person(clinic):
    for study in clinic:
        place = {s.name: study.offset(s, study.find("body")) for s in study.structures}
        assert (
            place["liver"]["left"] < -15
            and place["right lung"]["left"] < -30 < 30 < place["left lung"]["left"]
        )
        assert place["spine"]["posterior"] > place["aorta"]["posterior"] > place["heart"]["posterior"]
        assert place["heart"]["superior"] > place["liver"]["superior"]
        assert place["left lung"]["superior"] > place["bowel"]["superior"]
        for name, sign in (("spleen", 1), ("stomach", 1), ("left kidney", 1), ("right kidney", -1)):
            if name in place:
                assert sign * place[name]["left"] > 15, (study.id, name)
        assert {s.side for s in study.structures if s.name.startswith("left ")} == {"left"}


def test_structures_are_exactly_what_the_labels_say(clinic):
    for study in clinic[:8]:
        for structure in study.structures:
            mask = study.labels == structure.label
            if structure.name in HOSTS:
                mask |= study.labels == structure.label + 20
            if structure.name == "body":
                mask = study.labels > 0
            z, y, x = np.nonzero(mask)
            assert structure.voxels == len(z)
            assert structure.box == Box3D(x.min(), y.min(), z.min(), x.max() + 1, y.max() + 1, z.max() + 1)
            np.testing.assert_allclose(structure.centroid, (x.mean() + 0.5, y.mean() + 0.5, z.mean() + 0.5))
        present = {s.name for s in study.structures}
        assert present.isdisjoint(study.absent) and present | set(study.absent) == set(LABELS.values())


def test_patients_differ(clinic):
    sizes = np.array([study.find("liver").size for study in clinic]) / 1e6
    middles = np.array([study.find("liver").centroid for study in clinic])
    enhancement = [np.median(study.scan.array[study.labels == ORGANS["aorta"]]) for study in clinic]
    assert sizes.std() / sizes.mean() > 0.06 and middles.std(axis=0).min() > 0.2 and np.std(enhancement) > 12
    varied = [study.find("liver") for study in patients(0, 40, config=replace(DEFAULT, variation=1.0))]
    wider = np.array([liver.size for liver in varied]) / 1e6
    assert wider.std() / wider.mean() > max(0.1, 1.2 * sizes.std() / sizes.mean())
    assert np.array([liver.centroid for liver in varied]).std(axis=0).min() > 0.3
    native = [phantom(seed, config=replace(DEFAULT, uptake=(0.0, 0.0))) for seed in range(8)]
    dull = [np.median(study.scan.array[study.labels == ORGANS["aorta"]]) for study in native]
    assert max(dull) < 60 < min(enhancement)  # blood without contrast medium, and with it
    same = replace(DEFAULT, variation=0, absent=0, lesion_counts=(1.0,))
    assert phantom(1, config=same).find("liver").box == phantom(2, config=same).find("liver").box


def test_the_same_patient_on_a_finer_grid(clinic):
    for seed in (3, 14):
        fine = phantom(seed, shape=(16, 128, 128))
        for structure in clinic[seed].structures:
            if structure.voxels > 100:
                other = fine.find(structure.name)
                a, b = clinic[seed].offset(structure), fine.offset(other)
                assert max(abs(a[w] - b[w]) for w in ("left", "posterior")) < 5.625, structure.name
                assert other.size == pytest.approx(structure.size, rel=0.4)  # slices of 37 and of 19 mm
                assert {**other.attributes} == {**structure.attributes}
    big = phantom(3, shape=(32, 256, 256))
    assert big.scan.array.shape == (32, 256, 256)


def test_painting_only_around_each_organ_misses_nothing(monkeypatch):
    wild = replace(CLEAN, variation=1.5, warp=15.0)
    near = [phantom(seed, config=wild).labels for seed in range(25)]
    everywhere = tuple(slice(0, n) for n in wild.shape)
    monkeypatch.setattr(module, "_boxes", lambda blobs, *_: [everywhere] * len(blobs))
    for seed, labels in enumerate(near):
        assert (phantom(seed, config=wild).labels == labels).all()


def test_some_patients_lack_an_organ_and_none_both_kidneys():
    absent = Counter(name for study in patients(1000, 150) for name in study.absent if name in REMOVABLE)
    assert all(4 <= absent[name] <= 35 for name in REMOVABLE), absent
    for seed in range(20):
        none = set(phantom(seed, config=replace(DEFAULT, absent=1.0)).absent)
        assert {"spleen", "gallbladder", "stomach"} <= none and len(
            {"left kidney", "right kidney"} & none
        ) == 1
        assert set(phantom(seed, config=replace(DEFAULT, absent=0.0)).absent).isdisjoint(REMOVABLE)


def test_lesions_are_large_enough_inside_their_host_and_as_described():
    counts, compared = Counter(), 0
    config = replace(CLEAN, texture_contrast=0, sizes=tuple(SIZES))
    for study in patients(0, 150, config=config):
        hosts = [lesion.attributes["host"] for lesion in study.lesions]
        assert len(set(hosts)) == len(hosts) <= 3
        for lesion in study.lesions:
            said = lesion.attributes
            host = study.find(said["host"])
            assert lesion.name == f"{host.name} lesion" and lesion.side == host.side
            assert host.box.intersection(lesion.box) == lesion.box
            assert min(lesion.box.width, lesion.box.height) >= 7
            low, high = SIZES[said["size_class"]]
            assert low <= said["diameter_mm"] <= high
            pixel = study.spacing[-1]
            long = max(lesion.box.width, lesion.box.height) * pixel
            assert long == pytest.approx(said["diameter_mm"], abs=14)
            inner, around = (
                study.scan.array[ndimage.binary_erosion(study.labels == label, np.ones((1, 3, 3)))]
                for label in (lesion.label, host.label)
            )
            if len(around) > 3:  # away from the blurred border
                step = np.median(inner.astype(float)) - np.median(around.astype(float))
                assert step == pytest.approx(said["contrast_hu"], abs=8), study.id
                assert (step > 0) == (said["density"] == "hyperdense")
                compared += 1
            counts.update((said["size_class"], said["density"], said["texture"], said["host"]))
    total = sum(counts[size] for size in SIZES)
    assert total > 150 and compared > 0.9 * total and all(counts[host] > 0.04 * total for host in HOSTS)
    for classes in (SIZES, DEFAULT.densities, DEFAULT.textures):
        assert all(0.6 < counts[c] * len(classes) / total < 1.5 for c in classes), counts


def test_texture_is_the_same_on_all_slices_and_nothing_but_the_pattern():
    plain = replace(CLEAN, texture_contrast=0)
    seen = set()
    for seed in range(40):
        study, without = phantom(seed, config=CLEAN), phantom(seed, config=plain)
        assert (study.labels == without.labels).all()
        difference = study.scan.array.astype(int) - without.scan.array
        for lesion in study.lesions:
            mask = study.labels == lesion.label
            assert set(np.unique(np.abs(difference[mask])).tolist()) <= {44, 45, 46}  # rounding of HU
            shades = np.where(mask, np.sign(difference), 0)
            assert ((np.abs(shades.sum(axis=0))) == mask.sum(axis=0)).all()  # one shade through all slices
            seen.add(lesion.attributes["texture"])
        assert not difference[np.isin(study.labels, [s.label for s in study.lesions], invert=True)].any()
    assert seen == set(DEFAULT.textures)


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_sum_to_zero_over_every_cell_and_have_one_variance(name):
    rng = np.random.default_rng(0)
    halves = np.array([[[1, 1], [-1, -1]], [[1, -1], [-1, 1]], [[-1, 1], [-1, 1]]])
    pattern = texture_pattern(name, np.arange(24), np.arange(40), halves[rng.integers(0, 3, (7, 7))])
    assert pattern.shape == (40, 24)
    assert not pattern.reshape(20, 2, 12, 2).sum(axis=(1, 3)).any()
    assert (np.abs(pattern) == (name != "homogeneous")).all()


def test_isodense_and_homogeneous_lesions_on_request():
    config = replace(CLEAN, densities=("isodense",), textures=("homogeneous",), lesion_counts=(0, 1))
    for study in patients(0, 20, config=config):
        for lesion in study.lesions:
            assert lesion.attributes["host"] not in ("left lung", "right lung")
            assert abs(lesion.attributes["contrast_hu"]) <= 1


# --- the audit: texture needs a close look ----------------------------------------------------------------


def linear_accuracy(features: np.ndarray, truth: np.ndarray, trained: int, ridge: float) -> float:
    """Held-out accuracy of the linear discriminant of four classes, its covariance shrunk by ``ridge``."""
    x, y = features[:trained], truth[:trained]
    means = np.array([x[y == k].mean(axis=0) for k in range(4)])
    within = np.cov((x - means[y]).T)
    within += ridge * np.trace(within) / len(within) * np.eye(len(within))
    weights = np.linalg.solve(within, means.T)
    scores = features[trained:] @ weights - 0.5 * np.sum(means.T * weights, axis=0)
    return float((np.argmax(scores, axis=1) == truth[trained:]).mean())


def shown(study) -> np.ndarray:
    low, high = study.window
    return np.clip((study.scan.astype(np.float32) - low) / (high - low), 0, 1)


def neighbour_products(picture: np.ndarray, shade: tuple[float, float]) -> list[float]:
    """Correlation with itself moved by one and by two shades, along x, along y, along both."""
    found = []
    for steps in (1, 2):
        dx, dy = (round(steps * width) for width in shade)
        for a, b in ((0, dx), (dy, 0), (dy, dx)):
            one, other = picture[a:, b:], picture[: len(picture) - a, : picture.shape[1] - b]
            found.append(float(np.corrcoef(one.ravel(), other.ravel())[0, 1]))
    return found


def test_texture_hides_from_coarse_statistics_and_shows_in_the_enlarged_crop():
    coarse, close, truth = [], [], []
    seed = 5000
    while len(truth) < 900:
        study = phantom_slice(seed)
        seed += 1
        if len(study.lesions) != 1:
            continue
        lesion, picture = study.lesions[0], shown(study)
        truth.append(TEXTURES.index(lesion.attributes["texture"]))
        coarse.append(picture.reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel())
        box = lesion.box
        crop = Image.fromarray(picture).crop(box.as_tuple()).resize((64, 64), Image.Resampling.BICUBIC)
        close.append(neighbour_products(np.asarray(crop)[8:-8, 8:-8], (64 / box.width, 64 / box.height)))
    truth, trained = np.array(truth), 600
    from_coarse = linear_accuracy(np.array(coarse), truth, trained, ridge=0.1)
    from_close = linear_accuracy(np.array(close), truth, trained, ridge=0.0)
    assert from_coarse < 0.25 + 0.08, f"{from_coarse:.2f} from block averages; chance is 0.25"
    assert from_close > 0.9, f"{from_close:.2f} from enlarged crops"


# --- sources, settings, speed -----------------------------------------------------------------------------


def test_source_is_indexed_lazy_and_complete():
    source = PhantomSource(start=7, count=3, dimension="2d")
    assert isinstance(source, IndexedSource) and len(source) == 3
    assert [study.id for study in source] == [source[k].id for k in range(3)]
    assert [study.patient for study in source] == [f"phantom-00000{k}" for k in (7, 8, 9)]
    assert isinstance(source[0].structures[0].box, Box2D)
    with pytest.raises(IndexError):
        source[3]
    endless = iter(PhantomSource(count=10**12))
    assert next(endless).id == "phantom-000000" and next(endless).id == "phantom-000001"


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (8, 0, 64)},
        {"field_of_view": (300.0, -1.0, 360.0)},
        {"texture_mm": 0.0},
        {"variation": -1.0},
        {"noise": (5.0, 1.0)},
        {"absent": 1.5},
        {"lesion_counts": ()},
        {"lesion_counts": (0.0, 0.0)},
        {"sizes": ("huge",)},
        {"densities": ()},
        {"textures": ("rim",)},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DatasetError, match="PhantomConfig"):
        PhantomConfig(**wrong)


def test_settings_may_come_from_a_file():
    config = PhantomConfig(shape=[4, 32, 32], textures=["checkered"])
    assert config == PhantomConfig(shape=(4, 32, 32), textures=("checkered",)) and hash(config)
    assert phantom(0, config=config).shape == (4, 32, 32)


def test_impossible_requests_are_refused():
    with pytest.raises(DatasetError, match="plane from 0 to 7"):
        phantom_slice(0, z=8)
    with pytest.raises(DatasetError, match="seed"):
        phantom(-1)
    with pytest.raises(DatasetError, match="seed"):
        phantom(1 << 32)


def test_fast_enough():
    """A guard against slips only, well below the rate that the benchmark shows (over 200 volumes a second and
    core)."""

    def rate(make, n):
        start = time.process_time()
        for seed in range(n):
            make(seed)
        return n / (time.process_time() - start)

    assert max(rate(phantom, 20) for _ in range(4)) > 80
    assert max(rate(phantom_slice, 20) for _ in range(4)) > 120
