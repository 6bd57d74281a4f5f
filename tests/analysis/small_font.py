"""Write the font of the report's PDFs: ``python -m tests.analysis.small_font``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from fontTools import subset

from analysis.plots import files

LETTERS = [*range(0x20, 0x100), *range(0x2010, 0x2040), *range(0x2070, 0x2090), *range(0x2190, 0x2194), 0x2248, 0x25B2]
"""Western letters, and the signs of figures."""


def write(path: Path) -> None:
    """Write those letters of DejaVu Sans as a font with the name that the report uses."""
    options = subset.Options(layout_features=["kern"], name_IDs=["*"], drop_tables=["FFTM"])
    whole = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    with subset.load_font(str(whole), options) as font:
        letters = subset.Subsetter(options)
        letters.populate(unicodes=LETTERS)
        letters.subset(font)
        for record in font["name"].names:
            name = str(record).replace("DejaVu Sans", files.SMALL)
            record.string = name.replace("DejaVuSans", files.SMALL.replace(" ", ""))
        subset.save_font(font, str(path), options)


if __name__ == "__main__":
    write(Path(files.__file__).with_name("seqlm-sans.ttf"))
