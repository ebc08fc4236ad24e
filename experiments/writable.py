"""Whether results can be kept: asked before hours of work, not after them."""

from __future__ import annotations

from pathlib import Path

from wmpo.errors import UserError
from wmpo.io.files import require_writable


def check_writable(*folders: Path) -> None:
    """Make the folders where they are missing. Raises UserError for one in which no file can be made."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} can't be a folder: {error.strerror}. Choose another one.") from None
        require_writable(folder, "can't hold results; choose another folder")
