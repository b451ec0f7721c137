"""The typefaces that matplotlib's wheel carries (DejaVu and STIX, free licences), for Pillow."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from model.data.errors import InputError

FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
)
"""Latin letters, digits and punctuation in each."""
SANS, BOLD = FACES[:2]


@lru_cache(maxsize=256)
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """``face`` at ``size`` pixels per em, laid out the same whichever shaping libraries are installed."""
    path = package_directory("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=8)
def package_directory(name: str) -> Path:
    """Where the files of an installed package lie; the package is not imported.

    Raises:
        InputError: it is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"collect.embedded: the package {name} is not installed; the embedded corpus draws from its files"
        )
    return Path(spec.submodule_search_locations[0])
