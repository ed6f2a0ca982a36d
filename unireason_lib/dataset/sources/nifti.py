"""NIfTI scans with label maps; to make a study, of the scan only the header is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from unireason_lib.dataset.sources.base import FileSource, well_formed
from unireason_lib.dataset.study import Study, space_of
from unireason_lib.errors import ScanError
from unireason_lib.imaging import Volume, check_same_grid, load_volume, orient

_MM = {"meter": 1000.0, "micron": 0.001}


class NiftiSource(FileSource):
    """A source of NIfTI scans with label maps on the same grid."""

    flip: str = ""  # world axes along which headers are wrong; "xy": L-P-S written as R-A-S

    def scan(self, key: str) -> Volume:
        """One frame of the scan, with the header put right."""
        return self._turned(load_volume(self.scan_file(key), frame=self.case(key).frame))

    def study(self, key: str) -> Study:
        """One case from its label map."""
        path = self.file(self.case(key).labels[0])
        (names, inside), labels, grid = self.names_of(path), load_volume(path), self.grid(key)
        check_same_grid(grid, labels)
        grid = replace(grid, sides_certain=grid.sides_certain and labels.sides_certain)
        about = {"inside": inside, **space_of(grid)}
        about["hosts"] = {names[part]: names[organ] for part, organ in inside.items()}
        return self.measured(key, Study.from_labels, self._turned(labels), names, **about)

    def names_of(self, labels: Path) -> tuple[Mapping[int, str | None], Mapping[int, int]]:
        """Value -> name in a label map (None: left out), and value of a lesion -> its organ's."""
        raise NotImplementedError

    def grid(self, key: str) -> Volume:
        """The grid of a scan from its header alone, as a volume of zeros."""
        import nibabel as nib

        path = self.scan_file(key)
        with well_formed(path, "a NIfTI file", ScanError):
            image = nib.load(path)
            header, zeros = image.header, np.broadcast_to(np.uint8(0), image.shape[:3])
            named = (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0])
            axes = {nib.aff2axcodes(affine) for affine in named if affine is not None}
            mm = _MM.get(header.get_xyzt_units()[0], 1.0)
            affine = np.diag([mm, mm, mm, 1.0]) @ image.affine
            return orient(zeros, affine, str(path), sides_certain=len(axes) == 1)

    def _turned(self, volume: Volume) -> Volume:
        signs = np.diag([-1.0 if axis in self.flip else 1.0 for axis in "xyz"] + [1.0])
        about = {"sides_certain": volume.sides_certain, "scaling": volume.scaling}
        return orient(volume.array.T, signs @ volume.affine, volume.source, **about)
