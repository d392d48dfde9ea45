"""Read Omniglot: handwritten characters of 50 alphabets, 20 drawings of each (Lake et al. 2015, MIT licence)."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "omniglot28.npz"
WHERE = """Omniglot was not found at {path}.
Fetch python/images_background.zip from https://github.com/brendenlake/omniglot and give its path with --data."""


def load(path):
    """Images [characters, drawings, 1, 28, 28] with ink 1 on paper 0, from the published zip file or an .npz of it.

    An .npz holds `images` [n, 28, 28] (uint8, ink 255) and `character` [n], with as many drawings of each character.
    """
    if not path.is_file():
        raise SystemExit(WHERE.format(path=path))
    with zipfile.ZipFile(path) as archive:
        drawings = sorted(name for name in archive.namelist() if name.endswith(".png"))
        if drawings:
            images = np.stack([_shrunk(archive.read(name)) for name in drawings])
            character = np.unique([name.rpartition("/")[0] for name in drawings], return_inverse=True)[1]
        else:
            with np.load(path) as arrays:
                images, character = arrays["images"], arrays["character"]
    images = images[np.argsort(character, kind="stable")]
    return torch.from_numpy(images).float().div(255).reshape(len(np.unique(character)), -1, 1, 28, 28)


def _shrunk(png):
    """One drawing of 105 x 105 as 28 x 28, ink 255 on paper 0; each new pixel is the mean of those it covers."""
    return 255 - np.asarray(Image.open(io.BytesIO(png)).convert("L").resize((28, 28), Image.Resampling.BOX))
