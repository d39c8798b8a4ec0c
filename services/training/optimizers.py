"""Optimizers from a recipe: torch's own, and RMSprop as Keras computes it."""

from __future__ import annotations

import functools
import inspect
import operator
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


_PLAIN: Final = ("mean_square",)
_MOMENTUM: Final = ("mean_square", "velocity")


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
        self._blocks: dict[int, _Block] = {}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step along the gradients that `backward` left; `closure` is not used."""
        for index, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            block = self._block(index, parameters, _MOMENTUM if group["momentum"] else _PLAIN)
            torch._foreach_copy_(block.gradients, [p.grad for p in parameters])
            if group["weight_decay"]:
                torch._foreach_add_(block.gradients, parameters, alpha=group["weight_decay"])
            squares, change = block.state["mean_square"], block.gradient
            squares.mul_(group["smoothing"]).addcmul_(change, change, value=1 - group["smoothing"])
            torch.add(squares, group["epsilon"], out=block.divisor)
            change.div_(block.divisor.sqrt_()).mul_(group["lr"])  # a tensor where a CUDA graph reads it on the device
            if group["momentum"]:
                velocity = block.state["velocity"].mul_(group["momentum"])
                change.copy_(velocity.add_(change))
            torch._foreach_sub_(parameters, block.gradients)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take another optimizer's state, as `load_state_dict` does."""
        super().__setstate__(state)
        self._blocks = {}

    def _block(self, index: int, parameters: list[nn.Parameter], keys: tuple[str, ...]) -> _Block:
        """The block of a group; made at its first step, and anew for other parameters or where state was loaded."""
        block = self._blocks.get(index)
        if block is None or not block.of(parameters, keys):
            block = self._blocks[index] = _Block(parameters, self.state, keys)
        return block


class _Block:
    """What an optimizer keeps of several parameters, in one stretch of memory for each key.

    One kernel then does the work of one for each tensor, most of which are a few biases: 5% of the MNIST network's step
    on the CPU. Each parameter's state is a view of it, with the parameter's strides.
    """

    def __init__(
        self, parameters: list[nn.Parameter], state: Mapping[Tensor, dict[str, Any]], keys: tuple[str, ...]
    ) -> None:
        """Make it of what the state holds of the parameters, all on one device; what it lacks begins at zero."""
        self._parameters = parameters
        self.state = {key: self._stretch() for key in keys}
        """What is kept between steps, by its key."""
        self.gradient, self.divisor = self._stretch(), self._stretch()
        """Of one step."""
        self.gradients = self._views(self.gradient)
        for key, stretch in self.state.items():
            for parameter, view in zip(parameters, self._views(stretch), strict=True):
                of_parameter = state[parameter]
                if key in of_parameter:
                    view.copy_(of_parameter[key])
                of_parameter[key] = view

    def of(self, parameters: list[nn.Parameter], keys: tuple[str, ...]) -> bool:
        """Whether it is of just these."""
        same = len(parameters) == len(self._parameters) and all(map(operator.is_, parameters, self._parameters))
        return same and tuple(self.state) == keys

    def _stretch(self) -> Tensor:
        first = self._parameters[0]
        return torch.zeros(sum(p.numel() for p in self._parameters), dtype=first.dtype, device=first.device)

    def _views(self, stretch: Tensor) -> list[Tensor]:
        views, start = [], 0
        for parameter in self._parameters:
            # One whose values do not lie side by side gets them in the order of its axes
            strides = torch.empty_like(parameter, device="meta").stride()
            views.append(stretch.as_strided(parameter.shape, strides, start))
            start += parameter.numel()
        return views


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
