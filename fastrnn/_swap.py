"""Replacing modules inside a model without touching what they hold."""

from __future__ import annotations

import warnings
import weakref

import torch
from torch import nn

Kinds = dict[type[nn.Module], type[nn.Module]]

# torch.nn's copies of what our modules read from their attributes.
_CACHES = ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights")


def _is_one(module: nn.Module, kinds: Kinds) -> bool:
    """Whether a module is of some kind, or was before TorchScript compiled it."""
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", None)
        return name in {kind.__name__ for kind in kinds}
    return isinstance(module, tuple(kinds))


def _refusal(module: nn.Module, path: str, kinds: Kinds) -> str | None:
    """Why a recurrent module cannot be replaced, if so."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is part of a TorchScript program"
    if type(module) not in kinds:
        return f"a subclass, {type(module).__name__}"
    if "forward" in vars(module):
        return "its forward is patched"
    # `Module.compile` and `torch.compile(module)` have captured the module itself.
    if module._compiled_call_impl is not None or path.split(".")[-1] == "_orig_mod":
        return "it is compiled already"
    return None


def _replacement(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A `kind` that shares everything `module` holds; no constructor, no random numbers."""
    new = kind.__new__(kind)
    # The same dicts of parameters and hooks, so that handles still remove their hooks.
    vars(new).update((k, v) for k, v in vars(module).items() if k not in _CACHES)
    for name, hooks in vars(new).items():
        if not name.endswith("_hooks"):
            continue
        for hook in hooks.values():
            # Some hooks hold their module weakly, and the old one may be about to die.
            if getattr(hook, "with_module", False):
                hook.module = weakref.ref(new)
    return new


def swap(model: nn.Module, kinds: Kinds) -> nn.Module:
    """Replace every module whose exact type is a key of `kinds`, in place.

    Args:
        model: any module.
        kinds: type -> the type to put in its place, which reads the same attributes.

    Returns:
        The model, or its replacement.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    # Keyed by the old module, so that one reached twice becomes one replacement.
    replaced: dict[nn.Module, nn.Module] = {}
    left: list[str] = []
    for path, module in model.named_modules():
        if not _is_one(module, kinds):
            continue
        reason = _refusal(module, path, kinds)
        if reason is None:
            replaced[module] = _replacement(module, kinds[type(module)])
        else:
            left.append(f"{path or 'the model'} ({reason})")
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    if left:
        warnings.warn(f"accelerate left alone: {', '.join(left)}", stacklevel=3)
    return replaced.get(model, model)
