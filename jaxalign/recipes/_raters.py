"""What rates texts, by name: a Python function, or a model's folder."""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxalign import data, models, sampling
from jaxalign.errors import InputError, nearest_path
from jaxalign.models import RewardModel
from jaxalign.recipes._reward_rater import RewardModelReward
from jaxalign.recipes._run import weights_name
from jaxalign.sampling import TextReward

__all__ = ["folder_of", "identity_of", "load_function", "load_text_reward"]

_FUNCTION = re.compile(r"(?P<source>.+):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_text_reward(
    spec: str, *, flag: str = "--reward", batch_size: int = 32, truncation: sampling.TruncationPolicy = "error"
) -> TextReward:
    """A text reward, ``f(prompts, completions) -> scores``, by name.

    - "package.module:function" or "path/to/file.py:function": that function. The working folder (and the file's) can
      be imported from. A class is called without arguments, once, to make the function.
    - a folder or hub id of a reward model (a language model's trunk with one score): ``RewardModelReward`` of it.
    - a folder or hub id of any other classifier: ``sampling.classifier_reward`` of it; where it has several labels,
      FOLDER#LABEL says which is wanted.

    Args:
        spec: the name.
        flag: what errors call it.
        batch_size: texts that a folder's model scores together.
        truncation: of a classifier, as in ``sampling.ClassifierReward``.

    Raises:
        InputError: nothing of that name, a module that does not import (its error is the cause), no function, or a
            folder that holds no classifier.
    """
    function = load_function(spec, flag=flag)
    if function is not None:
        return function
    folder, label = _folder_and_label(spec)
    try:
        labels = models.load_labels(folder).names
        if label is None and len(labels) > 1:
            raise InputError(f"{folder} has the labels {', '.join(labels)}: write {folder}#LABEL for the one wanted")
        if len(labels) == 1 and _is_decoder(folder):
            model = models.load_reward_model(folder, dtype="float32")
            return RewardModelReward(model, data.load_tokenizer(folder), batch_size=batch_size, name=folder)
        return sampling.classifier_reward(folder, label=label, batch_size=batch_size, truncation=truncation)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error


def identity_of(rater: TextReward | RewardModel) -> str | None:
    """What a folder's rater is, by content: weights, mean and scale; None of a function, which cannot be read.

    The folder may hold another by the time a run continues.
    """
    if isinstance(rater, RewardModelReward):
        rater = rater.model
    if isinstance(rater, RewardModel):
        return f"{weights_name(rater.params)} mean {rater.mean!r} std {rater.std!r}"
    return weights_name(rater.params) if isinstance(rater, sampling.ClassifierReward) else None


def folder_of(spec: str) -> str | None:
    """The folder or hub id that ``load_text_reward`` would read; None where ``spec`` names a function."""
    if not Path(spec).expanduser().is_dir() and (":" in spec or spec.endswith(".py")):
        return None
    return _folder_and_label(spec)[0]


def load_function(spec: str, *, flag: str) -> Callable[..., Any] | None:
    """The function that ``spec`` names, or None where it is a folder's name or a hub id. Raises ``InputError``."""
    if Path(spec).expanduser().is_dir():
        return None
    if spec.endswith(".py"):
        raise InputError(f"{flag}: {spec}: say which function of the file: {spec}:FUNCTION")
    found = _FUNCTION.fullmatch(spec)
    if found is None:
        if ":" in spec:
            raise InputError(
                f"{flag}: {spec!r} is neither package.module:function, path/to/file.py:function, a folder nor a hub id"
            )
        return None
    source, name = found["source"], found["name"]
    value: Any = _module(source, flag)
    for part in name.split("."):
        if not hasattr(value, part):
            raise InputError(f"{flag}: {source} has no {name!r}; {_functions(value)}")
        value = getattr(value, part)
    if isinstance(value, type):
        try:
            value = value()
        except Exception as error:
            raise InputError(f"{flag}: {spec}() raised {_line(error)}") from error
    if not callable(value):
        raise InputError(f"{flag}: {spec} is a {type(value).__name__}, no function")
    return value


def _module(source: str, flag: str) -> ModuleType:
    """The module of a dotted name or a file; where it is already imported, that."""
    if source.endswith(".py"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"{flag}: {source}: no such file{nearest_path(source)}")
        path = path.resolve()
        _importable(path.parent)
        # A name of its own: a file random.py must not become the module random.
        name = f"_jaxalign_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(f"{flag}: {source} raised {_line(error)}{_at(error, path)}") from error
        return module
    if not _MODULE.fullmatch(source):
        raise InputError(f"{flag}: {source}: neither a file that ends with .py nor the name of a module")
    _importable(Path.cwd())
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is not None and (source == error.name or source.startswith(f"{error.name}.")):
            raise InputError(f"{flag}: no module named {error.name}") from error
        raise InputError(f"{flag}: {source} raised {_line(error)}") from error
    except Exception as error:
        raise InputError(f"{flag}: {source} raised {_line(error)}") from error


def _importable(folder: Path) -> None:
    """As ``python file.py`` has it; last, so that nothing installed is hidden."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _functions(value: Any) -> str:
    """What a module (or a class) defines itself, for errors."""
    home = getattr(value, "__module__", getattr(value, "__name__", None))
    public = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    own = [name for name, item in public.items() if callable(item) and getattr(item, "__module__", None) == home]
    return f"it has: {', '.join(own)}" if own else "it has no functions"


def _folder_and_label(spec: str) -> tuple[str, str | None]:
    folder, mark, label = spec.partition("#")
    return (folder, label) if mark and not Path(spec).exists() else (spec, None)


def _is_decoder(folder: str) -> bool:
    """Of a classifier; the others are encoders, which are no language models."""
    try:
        models.load_config(folder)
    except InputError:
        return False
    return True


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _at(error: BaseException, path: Path) -> str:
    """Where in the file, for errors whose text does not say it."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
