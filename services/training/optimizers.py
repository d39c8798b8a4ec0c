"""Optimizers from a recipe: torch's own, and RMSprop as Keras computes it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from contracts.errors import RecipeError
from contracts.recipe import Optimizer
from services.training.networks.layers import parameters_of

Groups = list[dict[str, Any]]

_WRAPPED: Final = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods that torch hides from torch.compile."""


def make_optimizer(config: Optimizer, parameters: nn.Module | Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the parameters that train.

    Args:
        config: The recipe's part.
        parameters: A network, or parameters alone, which are one group: they have no names.

    Raises:
        RecipeError: see `parameter_groups`.
    """
    trained: list[nn.Parameter] | Groups
    if isinstance(parameters, nn.Module):
        trained = parameter_groups(config, parameters)
    else:
        trained = [p for p in parameters if p.requires_grad]
    kind, options = _kind(config)
    optimizer: torch.optim.Optimizer = _eager(kind)(trained, lr=config.lr, weight_decay=config.weight_decay, **options)
    return optimizer


def _kind(config: Optimizer) -> tuple[Any, dict[str, Any]]:
    """The class of a recipe's optimizer, and what it takes beside the rate and the decay."""
    if config.name == "sgd":
        return torch.optim.SGD, {"momentum": config.momentum, "nesterov": config.nesterov, "fused": True}
    if config.name == "rmsprop":
        if config.epsilon_inside_sqrt:
            keras = {"smoothing": config.smoothing, "epsilon": config.epsilon, "momentum": config.momentum}
            return KerasRMSprop, keras
        options = {"alpha": config.smoothing, "eps": config.epsilon, "momentum": config.momentum, "foreach": True}
        return torch.optim.RMSprop, options
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind, {"betas": config.betas, "eps": config.epsilon, "fused": True}


@functools.cache
def _eager(kind: Any) -> Any:
    """An optimizer class without what torch wraps around it for torch.compile: the arithmetic is the same.

    Those wrappers import the compiler's whole front end (torch._dynamo with SymPy and Triton) when they are first
    called, 2.3 CPU seconds and 146 MB, only to tell it that it shall leave the optimizer alone. Where a plan compiles,
    it compiles the forward pass, and no optimizer.
    """
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


def parameter_groups(config: Optimizer, network: nn.Module) -> Groups:
    """The parameters that train, as torch's optimizers take them; `lr_scale` is a group's share of the learning rate.

    Raises:
        RecipeError: a layer of a group is not known, is held, or stands in two groups.
    """
    rest = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    trained = set(rest)
    groups: Groups = []
    for index, group in enumerate(config.groups):
        key = f"optimizer.groups.{index}.layers"
        for layer in group.layers:
            named = parameters_of(network, [layer], key=key) & trained
            if not named:
                raise RecipeError(f"{key}: {layer!r} has nothing to train, it is held or has no weights; remove it.")
            if not named <= set(rest):
                raise RecipeError(f"{key}: {layer!r} is in another group or named twice; leave it in one.")
            scale = group.lr / config.lr
            members = [rest.pop(name) for name in list(rest) if name in named]
            groups.append({"params": members, "lr": group.lr, "lr_scale": scale})
    if rest:
        groups.insert(0, {"params": list(rest.values()), "lr": config.lr, "lr_scale": 1.0})
    return groups


class KerasRMSprop(torch.optim.Optimizer):
    """RMSprop with epsilon inside the root: w -= lr * g / sqrt(v + epsilon), as Keras 3 computes it.

    torch adds epsilon to the root instead. With the usual epsilon of 1e-7 the floor under the divisor is 3e-4 here and
    1e-7 there, which lets torch take far longer steps where gradients are small.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Groups,
        *,
        lr: float,
        smoothing: float,
        epsilon: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "smoothing": smoothing,
            "epsilon": epsilon,
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step along the gradients that `backward` left; `closure` is not used."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            if not parameters:
                continue
            if group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
            squares = [self._state(p, "mean_square") for p in parameters]
            torch._foreach_mul_(squares, group["smoothing"])
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["smoothing"])
            divisor = torch._foreach_add(squares, group["epsilon"])
            torch._foreach_sqrt_(divisor)
            if group["momentum"]:
                velocities = [self._state(p, "velocity") for p in parameters]
                torch._foreach_mul_(velocities, group["momentum"])
                self._add_quotient(velocities, gradients, divisor, group["lr"])
                torch._foreach_sub_(parameters, velocities)
            else:
                self._add_quotient(parameters, gradients, divisor, -group["lr"])

    @staticmethod
    def _add_quotient(
        sums: list[Any], numerators: list[Any], denominators: list[Any] | tuple[Tensor, ...], factor: float | Tensor
    ) -> None:
        """sums += factor * numerators / denominators; a tensor is a rate that a CUDA graph reads on the device."""
        if isinstance(factor, Tensor):
            quotients = torch._foreach_div(numerators, denominators)
            torch._foreach_mul_(quotients, factor)
            torch._foreach_add_(sums, quotients)
        else:
            torch._foreach_addcdiv_(sums, numerators, denominators, value=factor)

    def _state(self, parameter: nn.Parameter, key: str) -> Tensor:
        state = self.state[parameter]
        if key not in state:
            state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[key]  # type: ignore[no-any-return]


def load_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give a new optimizer the state of another one over the same parameters.

    Args:
        optimizer: Whose groups stay as the recipe made them.
        tensors: By `INDEX.KEY` of torch's state dict, with the strides that they had: fused kernels rely on them.
        numbers: What else the state holds, by index and key.
    """
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers.items()}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
