"""Small folders of exactly the layouts of the published data sets."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from scipy import sparse

from unireason_lib.dataset.sources import open_source

SHAPE = (20, 16, 6)  # x, y, z
LPS, RAS = np.diag([-1.0, -1.0, 1.0, 1.0]), np.eye(4)
LIVER, TUMOUR = (1, 2, 1, 11, 12, 5), (4, 5, 2, 7, 8, 4)
KIDNEY = (13, 9, 1, 17, 13, 4)


def save_nifti(path: Path, array, axes=LPS, spacing=(1.0, 2.0, 3.0)) -> None:
    """Write (x, y, z[, channel]) with axes in these directions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, axes @ np.diag([*spacing, 1.0])), path)


def painted(boxes: dict) -> np.ndarray:
    """A label map (x, y, z): value -> (x1, y1, z1, x2, y2, z2), later ones over earlier ones."""
    labels = np.zeros(SHAPE, np.uint8)
    for value, (x1, y1, z1, x2, y2, z2) in boxes.items():
        labels[x1:x2, y1:y2, z1:z2] = value
    return labels


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 3001 - 1000).astype(np.int16)


def boxes_of(study) -> dict:
    return {structure.name: structure.box.as_tuple() for structure in study.structures}


def make_decathlon(
    root, task="Liver", names=("liver", "cancer"), channels=("CT",), axes=LPS, **more
):
    """One task with two cases: a liver with a tumour, and a liver."""
    entries = []
    for case, boxes in {"case_0": {1: LIVER, 2: TUMOUR}, "case_1": {1: LIVER}}.items():
        shape = SHAPE if len(channels) == 1 else (*SHAPE, len(channels))
        image, label = (f"./{kind}Tr/{case}.nii.gz" for kind in ("images", "labels"))
        save_nifti(root / image, ramp(*shape), axes)
        save_nifti(root / label, painted(boxes), axes)
        entries.append({"image": image, "label": label})
    about = {"name": task, "licence": "CC-BY-SA 4.0", "training": entries}
    about["modality"] = {str(k): channel for k, channel in enumerate(channels)}
    about["labels"] = {str(k): n for k, n in enumerate(("background", *names))}
    (root / "dataset.json").write_text(json.dumps({**about, **more}))
    return root


NAMES = {"0": "background", "1": "Liver", "2": "liver_tumor", "3": None, "4": "Kidney_L"}


def make_folder(root, names=NAMES):
    labels = painted({1: LIVER, 2: TUMOUR, 3: (15, 2, 1, 19, 6, 3)})
    for case in ("anna-visit1", "anna-visit2", "ben-visit1"):
        save_nifti(root / f"images/{case}.nii.gz", ramp(*SHAPE))
        save_nifti(root / f"labels/{case}.nii.gz", labels)
    (root / "names.json").write_text(json.dumps(names))
    return root


MASKS = {
    "kidney_left": KIDNEY,
    "kidney_cyst_left": (16, 9, 2, 18, 11, 3),
    "liver": LIVER,
    "vertebrae_L1": (8, 12, 0, 12, 16, 3),
    "spleen": None,
}


def make_totalsegmentator(root):
    """Two cases of one file per structure in R-A-S files, with ``meta.csv``."""
    for case in ("s0011", "s0012"):
        save_nifti(root / case / "ct.nii.gz", ramp(*SHAPE), RAS)
        for name, box in MASKS.items():
            values = painted({1: box} if box else {})[::-1, ::-1]  # boxes are L-P-S
            save_nifti(root / case / f"segmentations/{name}.nii.gz", values, RAS)
    table = "\ufeffimage_id;age;gender;split\r\ns0011;66.0;m;test\r\ns0012;;f;train\r\n"
    (root / "meta.csv").write_text(table, encoding="utf-8", newline="")
    return root


def make_multilabel(root):
    """An MRI with a label map, and the table of its names."""
    save_nifti(root / "a/mri.nii.gz", ramp(*SHAPE))
    save_nifti(root / "a/segmentations.nii.gz", painted({5: LIVER, 3: KIDNEY}))
    (root / "labels.json").write_text('{"1": "spleen", "3": "kidney_left", "5": "liver"}')
    return root


M3D_SHAPE = (12, 10, 6)  # X, Y, Z
M3D_KIDNEY, M3D_TUMOUR, M3D_CYST = (1, 1, 1, 6, 7, 5), (2, 2, 2, 5, 5, 4), (8, 8, 0, 12, 10, 2)


def channels(*boxes) -> np.ndarray:
    """(C, X, Y, Z), 1 inside of each box; later boxes are cut out of earlier ones."""
    stack = np.zeros((len(boxes), *M3D_SHAPE), np.int32)
    for k, box in enumerate(boxes):
        if box:
            x1, y1, z1, x2, y2, z2 = box
            stack[:, x1:x2, y1:y2, z1:z2] = 0
            stack[k, x1:x2, y1:y2, z1:z2] = 1
    return stack


def add_m3d(root, case: str, masks: np.ndarray) -> dict:
    """One raw case as the authors' script writes it (``case`` is code/folder), and its entry."""
    folder = root / case
    folder.mkdir(parents=True)
    image = np.random.default_rng(5).normal(size=(1, *M3D_SHAPE)).astype(np.float32)
    np.save(folder / "image.npy", image)
    matrix = sparse.csr_matrix(masks.reshape(len(masks), -1))
    sparse.save_npz(folder / f"mask_{masks.shape}", matrix)
    return {"image": f"{case}/image.npy", "label": f"{case}/mask_{masks.shape}.npz"}


def list_m3d(root, code: str, labels, train=(), test=()) -> None:
    names = {"0": "background", **{str(k): name for k, name in enumerate(labels, start=1)}}
    about = {"labels": names, "train": list(train), "test": list(test)}
    (root / code / f"{code}.json").write_text(json.dumps(about))


def make_m3d(root):
    train = [add_m3d(root, "0004/case_0", channels(M3D_KIDNEY, M3D_TUMOUR, M3D_CYST))]
    test = [add_m3d(root, "0004/case_1", channels(M3D_KIDNEY, None, None))]
    list_m3d(root, "0004", ["kidney", "kidney tumor", "kidney cyst"], train, test)
    return root


def prepare_m3d(raw, target, zeros=True, prefix=""):
    """What the authors' script makes of raw cases (without the resizing), in its two versions."""
    about = json.loads((raw / "0004/0004.json").read_text())
    for split in ("train", "test"):
        (pair,) = about.pop(split)
        folder, about[split] = (target / pair["image"]).parent, []
        (folder / "masks").mkdir(parents=True)
        np.save(folder / "image.npy", np.swapaxes(np.load(raw / pair["image"]), -1, -3))
        flat = sparse.load_npz(raw / pair["label"]).toarray().reshape(3, *M3D_SHAPE)
        for k, mask in enumerate(np.swapaxes(flat, -1, -3).astype(bool)):
            if mask.any() or zeros:
                mask = mask[None] if mask.any() else np.zeros((1, 1, 1, 1), np.int8)
                np.save(folder / f"masks/mask_{k}.npy", mask)
                case = f"{prefix}{Path(pair['image']).parent}"
                entry = {"image": f"{case}/image.npy", "label": f"{case}/masks/mask_{k}.npy"}
                about[split].append(entry)
    (target / "0004/0004.json").write_text(json.dumps(about))
    return target


def save_image(path: Path, shape=(40, 60), mode="L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(0, 255, (*shape, 3), np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def save_mask(path: Path, box=None, shape=(40, 60), value=255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, np.uint8)
    if box:
        x1, y1, x2, y2 = box
        values[y1:y2, x1:x2] = value
    Image.fromarray(values).save(path)


_NAMES = ("liver", "right_kidney", "kidney_tumor", "union_kidney_tumor_right_kidney", "class4")
CLASSES = {
    "FLARE22": {name: f"{k:04d}" for k, name in enumerate(_NAMES)},
    "CRASS": {"union_all": "0000", "clavicle": "0000"},
}


class SAMed2D:
    """A folder in the layout of SA-Med2D-20M that grows by one image after the other."""

    def __init__(self, root: Path):
        self.root, self.entries = root / "SAMed2Dv1", {}
        self.root.mkdir(parents=True)

    def add(self, stem: str, masks: dict, mode="L", value=255, size=(40, 60)) -> str:
        """``masks``: class_instance -> box; ``size`` is that of the masks."""
        save_image(self.root / f"images/{stem}.png", mode=mode)
        for suffix, box in masks.items():
            save_mask(self.root / f"masks/{stem}--{suffix}.png", box, size, value)
        self.entries[f"images/{stem}.png"] = [f"masks/{stem}--{suffix}.png" for suffix in masks]
        return stem

    def open(self, classes=CLASSES, **options):
        (self.root / "SAMed2D_v1.json").write_text(json.dumps(self.entries))
        (self.root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))
        return open_source("sa-med2d", self.root, **options)


def make_demo(root):
    """Two slices of one case, one whose name begins like the other's, and one of TotalSegmentator."""
    for stem in ("amos_0507_31", "amos_0507_31_2", "s0619_32"):
        save_image(root / f"images/{stem}.png", (30, 50), "RGB")
    for name, box in {
        "amos_0507_31_inferior_vena_cava_000": (5, 5, 9, 9),
        "amos_0507_31_2_liver_000": (1, 2, 20, 22),
        "s0619_32_hip_left_000": (1, 1, 9, 9),
        "s0619_32_hip_left_001": (20, 1, 29, 9),
    }.items():
        save_mask(root / f"masks/{name}.png", box, (30, 50))
    return root
