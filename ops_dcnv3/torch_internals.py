# SPDX-License-Identifier: Apache-2.0
"""All that is asked of PyTorch by names that are not public.

Who looks at the operators and modules that run, beside the code that calls them:
compilers, tracers, transforms, counters and hooks. And how a module was changed since
it was built. What runs faster, or keeps less, takes place only where nobody looks and
nothing changed.

Every name is looked up here once, when this module is imported. If a PyTorch lacks
one, it is in :data:`MISSING`, and everything runs module by module: slower, but right.
"""

from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.jit import is_tracing as _is_tracing  # type: ignore[attr-defined]

#: Names that this PyTorch does not have.
MISSING: list[str] = []


def _find(owner: Any, name: str) -> Any:
    """Return an attribute, or None and a note in MISSING."""
    if not hasattr(owner, name):
        MISSING.append(f'{owner.__name__}.{name}')
        return None
    return getattr(owner, name)


_are_functorch_transforms_active = _find(torch._C, '_are_functorch_transforms_active')
_len_torch_dispatch_stack = _find(torch._C, '_len_torch_dispatch_stack')
_AutoDispatchBelowAutograd = _find(torch._C, '_AutoDispatchBelowAutograd')
_after_autograd_keyset = _find(torch._C, '_after_autograd_keyset')
_find(forward_ad, '_current_level')  # a number that changes: read anew each time
_GLOBAL_HOOKS = [
    _find(nn.modules.module, f'_global_{kind}_hooks')
    for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')
]

_HOOKS = (
    '_forward_hooks',
    '_forward_pre_hooks',
    '_backward_hooks',
    '_backward_pre_hooks',
)
MISSING += [
    f'torch.nn.Module.{name}'
    for name in ('_parameters', '_modules', *_HOOKS)
    if name not in vars(nn.Module())
]
_hooks_of = itemgetter(*_HOOKS)


# -- Who looks -----------------------------------------------------------------------


def is_traced() -> bool:
    """Tell whether torch.jit.trace records what runs; a compiler does not ask it."""
    return not torch.compiler.is_compiling() and _is_tracing()


def is_forward_mode() -> bool:
    """Tell whether tensors may carry a tangent, a gradient in forward mode."""
    return getattr(forward_ad, '_current_level', -1) >= 0


def is_transformed() -> bool:
    """Tell whether a transform of ``torch.func`` or a forward-mode gradient is active.

    A compiler traces through these by itself. True where PyTorch cannot tell.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(MISSING) or _are_functorch_transforms_active() or is_forward_mode()


def find_observer() -> str:
    """Tell who looks at which operators and modules run; empty text for nobody.

    Autograd is nobody: ask ``torch.is_grad_enabled()``.
    """
    # First, as a compiler knows none of the others.
    if torch.compiler.is_compiling():
        return 'a compiler or torch.export reads the code'
    if _is_tracing():
        return 'torch.jit.trace records the operators'
    if MISSING:
        return f'PyTorch {torch.__version__} does not have {", ".join(MISSING)}'
    if _are_functorch_transforms_active():
        return 'a transform of torch.func is active'
    if is_forward_mode():
        return 'a forward-mode gradient is active'
    if _len_torch_dispatch_stack() > 0:
        return 'a TorchDispatchMode sees the operators'
    if any(_GLOBAL_HOOKS):
        return 'hooks on all modules are registered'
    return ''


# -- Ways through the dispatcher -----------------------------------------------------


def run_below_autograd(operator: Any, *args: Any) -> Any:
    """Call an operator of ours whose gradient is somebody else's matter.

    The way through the dispatcher's Python code, which looks for gradients, takes as
    long as the operator does on a small map.
    """
    if MISSING:
        return operator(*args)
    with _AutoDispatchBelowAutograd():
        return operator(*args)


def can_redispatch() -> bool:
    """Tell whether :func:`redispatch` works in this PyTorch."""
    return not MISSING


def redispatch(operator: Any, keyset: Any, *args: Any) -> Any:
    """Hand a call on from a kernel of the Autograd key to what comes after it."""
    with _AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & _after_autograd_keyset, *args)


# -- How a module was changed --------------------------------------------------------


class Part(NamedTuple):
    """What a module in a tree of modules is, when it has just been built."""

    name: str
    kind: type
    num_attributes: int
    settings: dict[str, Any]
    children: list[str]
    parameters: dict[str, type]


def list_parts(module: nn.Module) -> list[Part]:
    """List a module and its descendants, each before its children."""
    parts: list[Part] = []
    if MISSING:
        return parts
    for name, found in module.named_modules():
        state = vars(found)
        settings = {
            key: value
            for key, value in state.items()
            if not key.startswith('_') and key != 'training'
        }
        parameters = {key: type(value) for key, value in state['_parameters'].items()}
        children = list(state['_modules'])
        parts.append(
            Part(name, type(found), len(state), settings, children, parameters)
        )
    return parts


def find_change(module: nn.Module, parts: list[Part]) -> str:
    """Tell how a module differs from what was listed; empty text for not at all.

    Found are other types, hooks, own attributes (such as a ``forward``, which
    offloading sets), settings, children, and parameters that are more, fewer or of
    another type. Values of parameters may be others. By dictionaries, as a module's
    attributes take as long as a layer of a small map.
    """
    found = {'': module}
    for name, expected, num_attributes, settings, children, parameters in parts:
        part = found[name]
        here = name or type(module).__name__
        if type(part) is not expected:
            return f'{here} is a {type(part).__name__}, not a {expected.__name__}'
        state = vars(part)
        if any(_hooks_of(state)):
            return f'{here} has hooks'
        if len(state) != num_attributes or not settings.items() <= state.items():
            return f'{here} has other attributes than when it was built'
        own = state['_parameters']
        if own.keys() != parameters.keys():
            return f'{here} has other parameters than when it was built'
        for key, kind in parameters.items():
            if type(own[key]) is not kind:
                return f'{here}.{key} is a {type(own[key]).__name__}'
        modules = state['_modules']
        if list(modules) != children:
            return f'{here} has other children than when it was built'
        prefix = f'{name}.' if name else ''
        for child in children:
            found[prefix + child] = modules[child]
    return ''


def parameters_of(layer: nn.Module) -> list[Tensor]:
    """Return weight and bias of a layer of which :func:`find_change` finds nothing."""
    parameters: Any = vars(layer)['_parameters']
    return [parameters['weight'], parameters['bias']]


def is_called_plainly(layer: nn.Module) -> bool:
    """Tell whether a layer of PyTorch gets its input as it is, with plain weights.

    Adapters, hooks and quantised layers may cast or move what they get.
    """
    state = vars(layer)
    return (
        type(layer).__module__.startswith('torch.nn.modules.')
        and 'forward' not in state
        and not any(state.get(hooks) for hooks in _HOOKS)
        and type(state.get('_parameters', {}).get('weight')) is nn.Parameter
    )
