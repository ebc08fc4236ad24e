"""Named experiments as Python values. `wmpo run NAME` runs one; `--field value` changes a setting of it.

A recipe of your own is a value like these: add it to `RECIPES`, or pass it to `wmpo.opening.open_run`.
"""

from __future__ import annotations

from wmpo.config import Recipe
from wmpo.errors import named
from wmpo.families import completed
from wmpo.recipes.large import LARGE_24GB, LARGE_80GB
from wmpo.recipes.libero import LIBERO
from wmpo.recipes.metaworld import BIN_PICKING, PEG, PICK_PLACE
from wmpo.recipes.paper import PAPER
from wmpo.recipes.smoke import SMOKE
from wmpo.recipes.tabletop import FLOW, INSERT, PLACE, PUSH, SENTENCES, STACK, TRANSFORMER, WRIST

TABLETOP = (PLACE, WRIST, FLOW, TRANSFORMER, PUSH, STACK, INSERT, SENTENCES)
ALL = (*TABLETOP, SMOKE, PAPER, LARGE_24GB, LARGE_80GB, LIBERO, PEG, PICK_PLACE, BIN_PICKING)
RECIPES: dict[str, Recipe] = {recipe.name: completed(recipe) for recipe in ALL}

ABOUT: dict[str, str] = {
    "place": "Pick a block up and put it on a tray: the default, a laptop's CPU in minutes.",
    "wrist": "place, seen by the front and the wrist camera: the dream shows both, and the robot's state.",
    "flow": "place, by a policy that denoises its actions, as pi0 and SmolVLA do.",
    "transformer": "place, dreamt by a small copy of the paper's network, on latents: a transformer, an autoencoder.",
    "push": "Push a block into a zone.",
    "stack": "Put one block on another.",
    "insert": "Put a ring on a peg.",
    "sentences": "Place the red or the blue block, as the sentence says: one policy, one dream.",
    "smoke": "All stages of push, tiny: shows within minutes that everything works, learns nothing much.",
    "libero": "A task of LIBERO, a Panda arm seen by one camera: two cores in an hour; needs wmpo[libero].",
    "metaworld": "Insert a peg into the side of a box, in MetaWorld, seen by two cameras: docs/metaworld.md.",
    "metaworld-pick-place": "Carry a puck to a place in the air, in MetaWorld, seen by two cameras.",
    "metaworld-bin-picking": "Move a cube from one bin to the other, in MetaWorld, seen by two cameras.",
    "large-24gb": "place at 256 pixels by a SmolVLA of yours, for one GPU of 24 GB or many.",
    "large-80gb": "place at 256 pixels by an OpenVLA-OFT of yours and a dream of the paper's size, for GPUs of 80 GB.",
    "paper": "The paper's numbers: a large transformer on SDXL latents of 256-pixel images; needs GPUs.",
}


def recipe_named(name: str) -> Recipe:
    return named("recipe", name, RECIPES)
