"""`build`: from a dictionary with a `_target_` to the object that it names, and the rules of what may be named.

mcls's own parts may be named; optimizers and modules of torch; model functions of torchvision; each only in the group
that expects that kind. A package of the user's own may be named when the user's command line trusts it. A folder that
somebody else made trusts nobody.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mcls.errors import DataError, MclsError, RequestError

# group: the modules and packages whose own functions and classes it may name
OWN = {
    "dataset": ("mcls.datasets",),
    "model": ("mcls.models",),
    "loss": ("mcls.losses",),
    "optimizer": (),
    "schedule": ("mcls.schedules",),
    "augment": ("mcls.augmentations",),
    "mix": ("mcls.mixing",),
}
# group: packages of others, and the class that what they give must be derived from
THIRD_PARTY = {
    "model": (("torchvision.models", None), ("torch.nn", "torch.nn.Module")),
    "loss": (("torch.nn", "torch.nn.Module"),),
    "optimizer": (("torch.optim", "torch.optim.Optimizer"),),
}
# packages that are nobody's own, besides Python's
KNOWN = ("mcls", "torch", "torchvision", "hydra", "omegaconf", "yaml", "numpy", "PIL", "sklearn", "matplotlib", "tqdm")


def check_target(group: str, target: Any, trust: Sequence[str]) -> None:
    """Raise RequestError unless `group` may name `target`, or nothing as an augmentation may. Imports nothing."""
    for package in trust:
        if package.split(".")[0] in {*KNOWN, *sys.stdlib_module_names}:
            raise RequestError(f"trust: {package} is not a package of your own. Name the one that holds your code.")
    if target is None:
        if group in ("augment", "mix"):
            return
        raise RequestError(f"{group}._target_: missing, it names the class or function of the {group}.")
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise RequestError(f"{group}._target_: must be a dotted name, got {target!r}.")
    packages = [*OWN[group], *(package for package, _ in THIRD_PARTY.get(group, ())), *trust]
    if not any(target.startswith(f"{package}.") for package in packages):
        package = target.split(".")[0]
        own = package not in {*KNOWN, *sys.stdlib_module_names}
        hint = f" For a package of your own set trust=[{package}] on the command line." * own
        raise RequestError(
            f"{group}._target_: {target} is not allowed here; allowed are names in {', '.join(packages)}.{hint}"
        )


def import_object(name: str) -> Any:
    """The object with this dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def resolve(group: str, target: str, trust: Sequence[str]) -> Any:
    """The function or class `target`. Raises RequestError unless it is there and of the kind that `group` takes."""
    check_target(group, target, trust)
    try:
        component = import_object(target)
    except Exception as error:  # a user's own module may fail in any way
        absent = isinstance(error, ModuleNotFoundError) and error.name == target.split(".")[0]
        hint = " It is not on the Python path: PYTHONPATH=. mcls ..." * absent
        raise RequestError(f"{group}._target_: no {target} ({' '.join(str(error).split())}).{hint}") from error
    module, _, name = target.rpartition(".")
    if any(f"{module}.".startswith(f"{package}.") for package in OWN[group]):
        own = name in getattr(importlib.import_module(module), "__all__", ())
        allowed = callable(component) and (own or component.__module__ == module)
    elif any(target.startswith(f"{package}.") for package in trust):
        allowed = callable(component)
    else:
        allowed = foreign(group, target, component)
    if not allowed:
        raise RequestError(f"{group}._target_: {target} is not a {group}.")
    return component


def foreign(group: str, target: str, component: Any) -> bool:
    """Whether `component`, of torch or torchvision, is of the kind that `group` takes."""
    for package, base in THIRD_PARTY.get(group, ()):
        if not target.startswith(f"{package}."):
            continue
        if base is None:
            from torchvision.models import list_models

            return target.rpartition(".")[2] in list_models() and inspect.isfunction(component)
        if group == "loss" and inspect.isfunction(component) and component.__module__ == "torch.nn.functional":
            return list(inspect.signature(component).parameters)[:2] == ["input", "target"]
        return (
            inspect.isclass(component)
            and issubclass(component, import_object(base))
            and component.__module__.startswith(package)
        )
    return False


def build(group: str, node: Mapping[str, Any], trust: Sequence[str] = (), **runtime: Any) -> Any:
    """The object that `node` describes, or None where its `_target_` is null.

    `runtime` are the arguments known only now; a target gets those of them that its signature names and
    `node` does not. Schedules are
    functions called at every step: what comes back has its keys filled in and waits for the rest.

    Raises RequestError when a key does not belong to the target, or when the target refuses its value; DataError when
    a data set of the user's own fails.
    """
    name = node.get("_target_")
    if name is None:
        return None
    target = resolve(group, name, trust)
    keys = {key: value for key, value in node.items() if key != "_target_"}
    parameters = inspect.signature(target).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in keys:
        if key not in parameters and not open_ended:
            raise RequestError(f"{group}.{key}: {name} has no such argument. It has {', '.join(parameters)}.")
    passed = {
        key: value
        for key, value in runtime.items()
        if key not in keys and (key in parameters or (open_ended and key == "num_classes"))
    }
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and key not in keys
        and key not in passed
        and not (group == "schedule" and key == "progress")
    ]
    if group == "loss" and len(missing) == 2 and inspect.isfunction(target):  # of logits and targets: itself a loss
        return functools.partial(target, **keys, **passed)
    if missing:
        raise RequestError(f"{group}.{missing[0]}: {name} requires it, but the configuration does not have it.")
    if group == "schedule":
        return functools.partial(target, **keys)
    try:
        return target(**keys, **passed)
    except (MclsError, MemoryError):
        raise
    except Exception as error:
        if any(name.startswith(f"{package}.") for package in trust):
            kind = DataError if group == "dataset" else RequestError
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise kind(f"{group}._target_: {name} failed: {text}. See where: --debug.") from error
        if isinstance(error, TypeError | ValueError | LookupError) or (
            isinstance(error, RuntimeError) and group == "optimizer"
        ):
            raise RequestError(f"{group}: {name} refuses its arguments: {error}") from error
        raise
