"""The half-space policy of LHSPG: each redundant structure fades through a gate of its own, as fast as the loss allows.

A structure x stands as γ·x in what reads it, and γ falls from 1 to 0 within a period. The paper's dual half-space step
(arXiv 2310.18356, section 3.3) on γ, whose gradient is ⟨x, ∇⟩ = Σ h · ∂L/∂h over the reader's input h: the trial
γ - η (g + λ), with λ the ramp's; where the loss wants the structure back, g < 0, λ is clipped so that the step does not
climb, and on a single number both of the paper's bounds are -g, so that the gate waits; where the trial leaves the half-space,
γ̂ < ε γ, it is zero. At the period's end every gate is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Gates"]

EPSILON = 0.1

Reader = tuple[str, str, Tensor]
"""A linear map, a group, and the input channels [structures, channels] of those of its structures that fade."""


class Gates:
    """One gate a structure, for a period of ``length`` steps; gradients are collected from its making until `close`.

    A structure without readers fades by the ramp alone.
    """

    def __init__(
        self,
        model: nn.Module,
        readers: Sequence[Reader],
        sizes: Mapping[str, int],
        length: int,
        summed: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        """``summed`` adds up what several processes see of the text."""
        self.length, self._summed = length, summed
        self.values = {name: torch.ones(size) for name, size in sizes.items()}
        """γ by group, in the order of its fading structures."""
        self._moments = {name: torch.zeros(size) for name, size in sizes.items()}
        self._handles = [
            model.get_submodule(path).register_forward_pre_hook(self._watch(name, columns))
            for path, name, columns in readers
        ]

    def next(self, left: int) -> dict[str, Tensor]:
        """γ after a step more; ``left`` counts the steps of the period from this one on. The gradients are used up."""
        found: dict[str, Tensor] = {}
        for name, gate in self.values.items():
            slope = self._summed(self._moments[name]) / gate.clamp_min(1e-12)
            self._moments[name].zero_()
            # The median gate is moved as far by its gradient as by the ramp.
            usual = slope[gate > 0].abs().median() if gate.any() else torch.tensor(0.0)
            down = slope / usual / self.length if usual > 0 else torch.zeros_like(slope)
            trial = torch.where(slope < 0, gate, gate - down - gate / left)
            found[name] = torch.where(trial < EPSILON * gate, 0.0, trial) if left > 1 else torch.zeros_like(gate)
        return found

    def moved(self, fresh: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """To these γ; what each structure is multiplied by for it, by group."""
        before, self.values = self.values, dict(fresh)
        return {n: torch.where(g > 0, fresh[n] / g.clamp_min(1e-12), 0.0) for n, g in before.items()}

    def close(self) -> None:
        """Watch no more."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, columns: Tensor) -> Any:
        def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            value = given[0]
            if not value.requires_grad:
                return

            held = value.detach()  # a hook that holds its own tensor would keep both for ever

            def arrived(gradient: Tensor) -> None:
                moment = (gradient * held).flatten(0, -2).float().sum(0)
                self._moments[name] += moment[columns.to(moment.device)].sum(1).cpu()

            value.register_hook(arrived)

        return before
