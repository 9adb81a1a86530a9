"""Finds photographs to train on: the user's own, or those that installed packages carry.

The packages are located, not imported: only their sample files are wanted. scikit-learn's are CC BY
2.0 (see its ``datasets/images/README.txt`` for who took them); scikit-image's rocket was released
by SpaceX, and matplotlib's portrait of Grace Hopper by the US Navy, into the public domain.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Only photographs that have a way up: scikit-image's retina and its deep field have none.
CARRIED = (
    ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
    ("sklearn", "scikit-learn", "datasets/images/flower.jpg"),
    ("skimage", "scikit-image", "data/rocket.jpg"),
    ("matplotlib", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)


class NoPhotographs(Exception):  # noqa: N818 - it is no programmer's error
    """There is nothing to train on; the message says where was looked and what to do."""


def carried_photographs() -> list[str]:
    """Paths of the sample photographs of those packages that are installed."""
    found = []
    for module, _, file in CARRIED:
        spec = importlib.util.find_spec(module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder, file)
            if path.is_file():
                found.append(str(path))
    return found


def photographs_in(folder: str) -> list[str]:
    """Paths of all .jpg and .jpeg files under ``folder``, in any case of letters, sorted.

    Raises:
        NoPhotographs: ``folder`` is not a folder, or holds none.
    """
    if not Path(folder).is_dir():
        raise NoPhotographs(f"{folder}: there is no such folder")
    files = (file for file in Path(folder).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    found = sorted(str(file) for file in files if file.is_file())
    if not found:
        raise NoPhotographs(f"{folder}: no .jpg or .jpeg file in it or in its subfolders")
    return found


def find_photographs(folder: str | None) -> list[str]:
    """The photographs in ``folder``, or with ``None`` (or "") those of installed packages.

    Raises:
        NoPhotographs: there are none.
    """
    if folder:
        return photographs_in(folder)
    found = carried_photographs()
    if not found:
        packages = " ".join(dict.fromkeys(package for _, package, _ in CARRIED))
        raise NoPhotographs(
            "none of the packages that carry sample photographs is installed: "
            f"pip install {packages}, or name a folder of your own: --photos FOLDER"
        )
    return found
