"""A folder as itself, whatever lies at its path later."""

import os
from pathlib import Path


class Place:
    """A folder that is held open, so that another one at its path can be told from it.

    A file system may give the number of a folder that was removed to the next one it makes; of one that is open it
    does not.

    Args:
        path: a folder that is there.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def is_there(self) -> bool:
        """Whether what lies at the path is still this folder."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:  # nothing lies there, or a file server no longer knows the open one
            return False

    def close(self) -> None:
        """Hold it no longer."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
