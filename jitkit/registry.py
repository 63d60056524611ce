"""Find a domain: installed adapters by entry point, a user's module by name; check and open it.

Adapters are found by their entry points in the group ``jitkit.domains`` and imported only when a
recipe names them. A name such as ``my_module:MyDomain`` is code of the user's own. It is imported
only where the user named it: in a recipe given on the command line, in Python, or by ``--domain``;
never because a run's folder names it, since that may come from elsewhere.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from jitkit.domain import Domain
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.protocols import (
    Autoregressive,
    Chunked,
    Fetchable,
    HasSizes,
    Inspects,
    ScoresFeatures,
    Threaded,
    VariableSize,
    VerifiesForecasts,
    Weighted,
)
from jitkit.sections import DomainSection

PROTOCOLS: tuple[type[Domain], ...] = (
    VariableSize,
    Weighted,
    Autoregressive,
    VerifiesForecasts,
    ScoresFeatures,
    Fetchable,
    Inspects,
)
OPTIONAL_MEMBERS = (
    *("conditions", "metadata", "measure", "from_metadata", "encode_condition"),
    *("write", "preview", "scores"),
)
COMMON_WORDS = {"steps", "history", "recorded", "forecasts", "conditioning"}
"""Members of a protocol that a class may well have for its own purposes."""
SYNONYMS = {"metric": "scores", "metrics": "scores", "facts": "metadata", "outline": "template"}
"""Words for a member that do not resemble it; the last two are its names in jitkit 0.1."""

_imported: dict[str, type[Domain]] = {}


def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed adapters by name; none is imported."""
    points = sorted(entry_points(group="jitkit.domains"), key=lambda point: point.name)
    return {point.name: point for point in points}


def domain_class(name: str) -> type[Domain]:
    """The adapter class of a name: of an installed one, or imported before by `import_domain`.

    Raises:
        RecipeError: no adapter of that name is installed, or the module was not imported.
    """
    if ":" in name:
        if name not in _imported:
            raise RecipeError(
                f"domain {name!r} is code of its own, which is imported only if you name it: in a "
                f"recipe that you give to jitkit train, or for a trained run with --domain {name}"
            )
        return _imported[name]
    points = installed()
    if name not in points:
        raise RecipeError(
            f"no domain {name!r}; installed: {listed(points)}, and classes of your own as "
            f"my_module:MyDomain{nearest(name, points)}"
        )
    cls: type[Domain] = points[name].load()
    return cls


def import_domain(name: str, folders: Iterable[Path]) -> type[Domain]:
    """Import the class ``my_module:MyDomain`` from the first of these folders that has the module.

    Raises:
        RecipeError: there is no such module or class, or importing it fails.
    """
    if name in _imported:
        return _imported[name]
    module_name, _, class_name = name.partition(":")
    folders = list(dict.fromkeys(folder.resolve() for folder in folders))
    folder = next((folder for folder in folders if _holds(folder, module_name)), None)
    if folder is None:
        raise RecipeError(
            f"domain {name!r}: no module {module_name!r} in {listed(map(str, folders))}; place "
            f"{module_name.replace('.', '/')}.py beside the recipe or in the working folder"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # workers that read and encode get it too
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code may fail in any way
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise RecipeError(
            f"domain {name!r}: importing {module_name} fails: {type(error).__name__}: {error} "
            f"({last.filename}:{last.lineno})"
        ) from error
    if not Path(module.__file__ or "").resolve().is_relative_to(folder):
        raise RecipeError(
            f"domain {name!r}: another module {module_name!r} was imported before, from "
            f"{module.__file__}; rename yours"
        )
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, Domain)):
        classes = [key for key, value in vars(module).items() if _is_own_domain(value, module_name)]
        raise RecipeError(
            f"domain {name!r}: {module.__file__} has no subclass of jitkit.Domain of that name; "
            f"it has {listed(classes) or 'none'}{nearest(class_name, classes)}"
        )
    _imported[name] = cls
    return cls


def _holds(folder: Path, module: str) -> bool:
    path = folder.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _is_own_domain(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Domain) and value.__module__ == module


def name_of(cls: type[Domain]) -> str | None:
    """The name under which a class is installed or was imported; None if it is neither."""
    names = [name for name, imported in _imported.items() if imported is cls]
    home = f"{cls.__module__}:{cls.__qualname__}"
    names += [name for name, point in installed().items() if point.value == home]
    return names[0] if names else None


def inspect(
    path: str | Path,
    *,
    group: str | None = None,
    options: Mapping[str, Any] | None = None,
    domain: str = "arrays",
) -> Any:
    """Scan a file or store and propose a recipe for it, as `jitkit inspect` does.

    Args:
        path: file, folder, pattern or URL.
        group: group inside a Zarr store or an HDF5 file.
        options: of a remote store, ``{"anonymous": True}``.
        domain: name of the adapter that inspects.

    Returns:
        A proposal: ``recipe`` (sections, for `jitkit.train`), ``text()`` (the recipe as YAML),
        ``rows`` of variables, ``reasons``, ``unsure``, ``warnings``, ``plain()`` (JSON).

    Raises:
        RecipeError: there is no such domain, or it cannot inspect data.
        DataError: the data cannot be read.
    """
    adapter = domain_class(domain)
    if not issubclass(adapter, Inspects):
        raise RecipeError(f"domain {domain!r} cannot inspect data; arrays can")
    return adapter.inspect(str(path), group=group, options=options)


def open_domain(section: DomainSection) -> Domain:
    """Create the domain of a recipe's section ``domain`` and check that it has data.

    Raises:
        RecipeError: no adapter of that name is installed, or it misses the contract.
        DataError: the data are missing or inconsistent with the section.
    """
    domain = domain_class(section.name)(section)
    check_instance(domain)
    check_has_items(domain, section.name)
    return domain


def check_has_items(domain: Domain, name: str) -> None:
    """Check that the training split has items, whose class derives from the protocols it follows.

    Raises:
        DataError: it has none, or their file does not exist.
        RecipeError: a member of the sequence would be ignored.
    """
    try:
        items = domain.items("train")
    except FileNotFoundError as error:
        keys = () if domain.section is None else dict(domain.section).items()
        named = [f"domain.{key}" for key, value in keys if str(value) == str(error.filename)]
        where = f"it is set by {named[0]}" if named else "see section domain of the recipe"
        raise DataError(f"{error.filename}: no such file; {where}") from error
    if not len(items):
        raise DataError(f"domain {name!r}: the training split has no items")
    if errors := item_errors(domain, items):
        raise RecipeError("\n".join(errors))


def check_instance(domain: object) -> None:
    """Check that an object is a domain, not a class, whose members jitkit uses; None passes.

    Raises:
        RecipeError: it is not.
    """
    if domain is None:
        return
    if isinstance(domain, type):
        raise RecipeError(
            f"domain={domain.__name__} is a class; pass an instance of it: "
            f"domain={domain.__name__}(...)"
        )
    if not isinstance(domain, Domain):
        raise RecipeError(
            f"domain={type(domain).__name__}(...) is not a domain; derive the class from "
            "jitkit.Domain, or make one of arrays with jitkit.from_arrays"
        )
    if errors := member_errors(domain):
        raise RecipeError("\n".join(errors))


def member_errors(domain: Domain) -> list[str]:
    """Members that resemble those of a protocol but would be ignored, as one line each.

    A class that has a member of a protocol without deriving from it, or a name that is close to
    one, such as ``weight`` for ``weights``, probably has a typing error.
    """
    bases = [base for base in type(domain).__mro__ if base is Domain or base in PROTOCOLS]
    used = {name for base in bases for name in vars(base)} | COMMON_WORDS
    homes: dict[str, Any] = dict.fromkeys(OPTIONAL_MEMBERS, Domain)
    homes |= {name: p for p in PROTOCOLS for name in vars(p) if not name.startswith("_")}
    classes = [base for base in type(domain).__mro__ if base not in (*bases, object)]
    names = dict.fromkeys(name for cls in classes for name in vars(cls))
    attributes = dict.fromkeys(name for name in vars(domain) if name not in names)
    errors = []
    for name in (*names, *attributes):
        members = homes.keys() - COMMON_WORDS if name in names else {"conditions", "weights"}
        close = None if name.startswith("_") or name in used else _closest(name, members)
        if close is not None:
            errors.append(_unused(domain, name, homes[close], close))
    return errors


def _unused(domain: Domain, name: str, home: Any, member: str) -> str:
    steps = [] if name == member else [f"name it {member}"]
    if not isinstance(domain, home):
        steps.append(f"derive the class from jitkit.protocols.{home.__name__}")
    return (
        f"{type(domain).__name__}.{name} is never used; if it is meant as "
        f"{home.__name__}.{member}, {' and '.join(steps)}; else give it another name"
    )


def item_errors(domain: Domain, items: Any) -> list[str]:
    """The same for a sequence of items whose class comes with the domain."""
    package = type(domain).__module__.split(".")[0]
    if type(items).__module__.split(".")[0] != package:
        return []  # an array of a library may have other attributes of these names
    kinds: dict[str, type] = {"sizes": HasSizes, "threads": Threaded, "order": Chunked}
    return [
        f"{type(items).__name__}.{name} is never used; derive the class from "
        f"jitkit.protocols.{kind.__name__}, or give it another name"
        for name, kind in kinds.items()
        if hasattr(items, name) and not isinstance(items, kind)
    ]


def _closest(name: str, members: Iterable[str]) -> str | None:
    """The member that a name resembles: a plural, capitals, an extra letter, swapped letters."""
    targets = {member: member for member in members}
    targets |= {word: member for word, member in SYNONYMS.items() if member in targets}
    word = name.lower()
    swapped = [target for target in targets if sorted(target) == sorted(word)]
    close = swapped or difflib.get_close_matches(word, targets, n=1, cutoff=0.9)
    return targets[close[0]] if close else None
