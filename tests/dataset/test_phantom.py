"""Phantoms: reproducible, plausible, truthful, varied, fast, with textures that need a close look."""

from collections import Counter
from dataclasses import replace
from importlib import import_module
from math import prod

import numpy as np
import pytest

from unireason_lib.dataset import PhantomConfig, phantom, phantom_slice
from unireason_lib.dataset.sources.phantom import DEFAULT, HOSTS, ORGANS, TEXTURES
from unireason_lib.errors import DatasetError

MODULE = import_module("unireason_lib.dataset.sources.phantom")  # its name is also a function's
WHOLE = replace(DEFAULT, shape=(40, 64, 64), length=(400, 400), top=(150, 150), lesion_counts=(1,))


@pytest.fixture(scope="module")
def clinic():
    """Patients as the default makes them."""
    return [phantom(seed) for seed in range(120)]


def test_a_seed_gives_the_same_study_whatever_else_is_made(clinic):
    again = phantom(17)
    assert (again.scan.array == clinic[17].scan.array).all()
    assert (again.labels == clinic[17].labels).all()
    assert again.structures == clinic[17].structures and again.patient == "phantom-000017"
    assert len({study.scan.array.tobytes() for study in clinic}) == len(clinic)


@pytest.mark.parametrize("shape", [(8, 64, 64), (5, 41, 63)], ids=["even", "odd"])
def test_a_slice_made_alone_is_the_slice_of_the_volume(shape):
    config = replace(DEFAULT, shape=shape)
    for seed in range(10):
        volume = phantom(seed, config=config)
        alone = phantom_slice(seed, config=config)
        cut = volume.slice(alone.details["z"])
        assert (alone.scan == cut.scan).all() and (alone.labels == cut.labels).all()
        for name in ("id", "patient", "structures", "absent", "directions", "details"):
            assert getattr(alone, name) == getattr(cut, name), name
        np.testing.assert_allclose(alone.spacing, cut.spacing)


def test_volumes_are_hounsfield_units_in_lps(clinic):
    import nibabel as nib

    for study in clinic[:20]:
        scan, labels = study.scan.array, study.labels
        assert scan.dtype == np.int16 and labels.dtype == np.uint8 and study.directions == "LPS"
        assert nib.aff2axcodes(study.scan.affine) == ("L", "P", "S")
        assert abs(np.median(scan[labels == 0]) + 1000) < 30
        assert np.median(scan[labels == ORGANS["spine"]]) > 70


def cm3(study):
    """Of a voxel."""
    return prod(study.spacing) / 1e3


def test_organs_have_textbook_volumes():
    """Kidneys had 330 cm3."""
    studies = [phantom(seed, config=replace(WHOLE, absent=0)) for seed in range(60)]
    ranges = {"liver": (1100, 2000), "spleen": (110, 330), "gallbladder": (20, 65)}
    ranges |= {"heart": (450, 1000), "stomach": (150, 500), "right lung": (1500, 3500)}
    ranges |= dict.fromkeys(("left kidney", "right kidney"), (110, 230))
    for name, (low, high) in ranges.items():  # cm3 of adults, generous
        sizes = [study.find(name).voxels * cm3(study) for study in studies]
        assert low < np.percentile(sizes, 5) and np.percentile(sizes, 95) < high, (name, sizes)
        assert np.std(sizes) / np.mean(sizes) > 0.07
    for name, low, high in (("aorta", 17, 28), ("inferior vena cava", 16, 32)):  # mm across
        areas = [study.slice(18).find(name).voxels * prod(study.spacing[1:]) for study in studies]
        assert low < 2 * np.sqrt(np.median(areas) / np.pi) < high


def test_slices_and_lesions_have_plausible_sizes(clinic):
    """Slices lay 37.5 mm apart, the median lesion had 203 cm3, the heart was the second host."""
    spacings = np.array([study.spacing for study in clinic])
    assert 16 <= spacings[:, 0].min() < 18 and 23 < spacings[:, 0].max() <= 25
    assert 280 <= 64 * spacings[:, 2].min() < 310 and 370 < 64 * spacings[:, 2].max() <= 400.001
    lesions = [lesion for study in clinic for lesion in study.lesions]
    assert all(42 <= lesion.attributes["diameter_mm"] <= 72 for lesion in lesions)
    volumes = [lesion.voxels * cm3(study) for study in clinic for lesion in study.lesions]
    assert 40 < np.median(volumes) < 90
    for lesion, volume in zip(lesions, volumes, strict=True):
        ball = np.pi / 6 * lesion.attributes["diameter_mm"] ** 3
        assert 0.5 < 1e3 * volume / ball < 1.6
        assert min(lesion.box.width, lesion.box.height) >= 5  # pixels: room for a texture
    hosts = Counter(lesion.attributes["host"] for lesion in lesions)
    assert set(hosts) == set(HOSTS) and max(hosts.values()) == hosts["liver"] < 0.55 * len(lesions)
    assert min(hosts.values()) > 0.03 * len(lesions), hosts


def test_organs_lie_where_they_do_in_a_person(clinic):
    left = ("left lung", "left kidney", "spleen", "stomach")
    for study in clinic:
        middle, mm = np.array(study.find("body").centroid), study.spacing[::-1]
        place = {s.name: (np.array(s.centroid) - middle) * mm for s in study.structures}
        assert place["liver"][0] < -15 and place["spine"][1] > place["aorta"][1] > -20
        assert place["left lung"][2] > place["liver"][2]
        for name in place.keys() & {*left, "right lung", "right kidney", "gallbladder"}:
            assert (1 if name in left else -1) * place[name][0] > 5, (study.id, name)


def test_patients_and_their_scans_differ_widely(clinic):
    """Appearance varies as SynthSeg's does, so that what is learnt has a chance on a real CT."""
    liver, aorta = (
        np.array([np.median(s.scan.array[s.labels == ORGANS[name]]) for s in clinic])
        for name in ("liver", "aorta")
    )
    assert np.percentile(liver, 5) < 50 and np.percentile(liver, 95) > 115
    assert np.percentile(aorta, 5) < 50 and np.percentile(aorta, 95) > 230
    air = [s.scan.array[s.labels == 0].astype(float) + 1000 for s in clinic]
    noise = [1.48 * np.median(np.abs(hu)) for hu in air]
    assert min(noise) < 7 and max(noise) > 17
    middles = np.array([study.find("liver").centroid for study in clinic])
    assert (middles.std(axis=0) > (1.2, 1.1, 0.5)).all()


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_vanish_in_the_mean_of_every_cell_and_have_one_variance(name):
    rng = np.random.default_rng(0)
    patterns = [np.tile(MODULE.texture_pattern(name, rng), (2, 2)) for _ in range(20)]
    for pattern in patterns:
        n = len(pattern) // 2
        assert not pattern.reshape(n, 2, n, 2).sum(axis=(1, 3)).any()
        assert (np.abs(pattern) == (name != "homogeneous")).all()
    assert name == "homogeneous" or {pattern[0, 0] for pattern in patterns} == {-1, 1}


WRONG = {
    "shape": [(8, 0, 64), (64, 64)],
    "field_of_view": [(-1.0, 360.0), (300.0, 340.0, 340.0)],
    "noise": [(5.0, 1.0), (-1.0, 1.0)],
    "absent": [-1.0, 1.5],
    "lesion_counts": [(), (0.0, 0.0), (1,) * 8],
    "textures": [("rim",), ()],
}


def test_impossible_settings_are_refused():
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises(DatasetError, match="PhantomConfig"):
                PhantomConfig(**{name: value})
    assert PhantomConfig(shape=[4, 32, 32]).shape == (4, 32, 32)  # lists, as a file has them
    for seed in (-1, 1 << 32):
        with pytest.raises(DatasetError, match="seed"):
            phantom(seed)
