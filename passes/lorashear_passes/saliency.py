"""Which structures go first: training-free criteria as pure tensor functions.

A consumer is a linear map ``y = W h`` that contracts over a group, ``W`` of shape ``[out, in]``. Structure ``s`` owns the
columns ``columns[s]``, a row of an integer tensor ``[structures, width]``: one column for an MLP channel, ``head_dim`` for a
query head, ``rep * head_dim`` for a KV head with its queries. ``C = E[h h^T]``, ``[in, in]``, is the mean over calibration
tokens, so errors are mean squares per token in the units of ``y``.

Every criterion ends in an order of all structures, the first to go first. With ``blocks > 1`` the structures lie in that many
equal consecutive blocks and the order runs in rounds, one structure of each block per round, so that every prefix of
``rounds * blocks`` takes equally many from each block.
"""

from zlib import crc32

import torch
from torch import Tensor

__all__ = ["drawing", "fluctuation", "in_rounds", "obs_costs", "obs_order", "random_scores", "summed", "wanda"]

DAMP = 1e-3
"""Default ridge: λ is this share of the mean diagonal of ``C``; chosen by ``tools/study_criteria.py``."""

ROUNDS = 128
"""Rounds of the greedy order; 1024 kept no more on any model that was tried, and took eight times as long."""


def summed(slots: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The importance of all weights that a structure owns, ``[structures]``.

    ``slots`` holds a pair per slot: the importance of its weights summed per index of the slot's dimension, ``[indices]``,
    and the indices of each structure, ``[structures, width]``.
    """
    return torch.stack([sums.double()[index].sum(1) for sums, index in slots]).sum(0)


def wanda(weight: Tensor, covariance: Tensor, columns: Tensor) -> Tensor:
    """``Σ_{j in S} ‖W_:j‖² C_jj``, ``[structures]``: Wanda (Sun et al. 2023) with squares summed per structure."""
    scores = weight.double().square().sum(0) * covariance.double().diagonal()
    return scores[columns].sum(1)


def fluctuation(weight: Tensor, variance: Tensor, columns: Tensor) -> Tensor:
    """``Σ_{j in S} ‖W_:j‖² Var(h_j)``, ``[structures]``: FLAP (An et al. 2024) summed per structure."""
    scores = weight.double().square().sum(0) * variance.double()
    return scores[columns].sum(1)


def drawing(seed: int, name: str) -> torch.Generator:
    """What is drawn for a group or map of this name, on the CPU: the same on every device and whatever stands beside it."""
    return torch.Generator().manual_seed(2**32 * seed + crc32(name.encode()))


def random_scores(structures: int, generator: torch.Generator) -> Tensor:
    """Scores without knowledge, ``[structures]``."""
    return torch.rand(structures, generator=generator, dtype=torch.float64)


def in_rounds(scores: Tensor, blocks: int = 1) -> list[int]:
    """All structures by rising score, in rounds of one per block; ties go to the lower index."""
    table = scores.detach().double().cpu().reshape(blocks, -1)
    ranked = table.argsort(dim=1, stable=True)
    order: list[int] = []
    for turn in range(table.shape[1]):
        found = [
            (float(table[block, index]), block * table.shape[1] + index)
            for block, index in enumerate(ranked[:, turn].tolist())
        ]
        order += [structure for _, structure in sorted(found)]
    return order


def obs_order(
    weight: Tensor,
    covariance: Tensor,
    columns: Tensor,
    *,
    blocks: int = 1,
    damp: float = DAMP,
    count: int | None = None,
    rounds: int = ROUNDS,
) -> list[int]:
    """The greedy order of structured optimal brain surgeon (ZipLM, Kurtic et al. 2023; SparseGPT, Frantar & Alistarh 2023).

    With ``H = C + λI`` and the inverse over what is alive, removing S and refitting the rest costs
    ``tr(W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ)``. The cheapest goes; then ``W`` and ``H⁻¹`` take their exact block update. Where there are
    more than ``rounds`` structures of one column (and one block), each round takes several of the cheapest with one joint
    update. ``count`` stops the order early: it is then the beginning of the whole one.
    """
    inverse = damped_inverse(covariance, damp)
    work = weight.to(inverse).clone()
    columns = columns.to(work.device)
    structures = columns.shape[0]
    alive = torch.ones(structures, dtype=torch.bool, device=work.device)
    open_blocks = torch.ones(blocks, dtype=torch.bool, device=work.device)
    block_of = torch.arange(structures, device=work.device) // (structures // blocks)
    stride = max(1, structures // rounds) if columns.shape[1] == 1 and blocks == 1 else 1
    wanted = structures if count is None else count
    order: list[int] = []
    while len(order) < wanted:
        costs = _costs(work, inverse, columns).masked_fill(~(alive & open_blocks[block_of]), torch.inf)
        chosen = costs.argsort(stable=True)[: min(stride, wanted - len(order))]
        _remove(work, inverse, columns[chosen].flatten())
        alive[chosen] = False
        open_blocks[block_of[chosen]] = False
        order += chosen.tolist()
        if len(order) % blocks == 0:
            open_blocks.fill_(True)
    return order


def obs_costs(weight: Tensor, covariance: Tensor, columns: Tensor, damp: float = DAMP) -> Tensor:
    """What the first removal costs by optimal brain surgeon, for each structure, ``[structures]``."""
    inverse = damped_inverse(covariance, damp)
    return _costs(weight.to(inverse), inverse, columns.to(inverse.device))


def damped_inverse(covariance: Tensor, damp: float) -> Tensor:
    """``(C + λI)⁻¹`` with λ = damp · mean diagonal, in float64 where the device has it; λ grows tenfold until it exists."""
    exact = covariance.to(working_dtype(covariance))
    mean = float(exact.diagonal().mean())
    unit = torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    ridge = max(damp * mean, torch.finfo(exact.dtype).eps * max(mean, 1e-30))
    while True:
        factor, failed = torch.linalg.cholesky_ex(exact + ridge * unit)
        if not int(failed):
            return torch.cholesky_inverse(factor)
        ridge *= 10


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 where float64 is missing (Apple's GPU)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _costs(work: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    if columns.shape[1] == 1:
        index = columns[:, 0]
        return (work.square().sum(0) / inverse.diagonal())[index]
    costs: list[Tensor] = []
    for index in columns:
        part = work[:, index]
        costs.append((torch.linalg.solve(inverse[index][:, index], part.T) * part.T).sum())
    return torch.stack(costs)


def _remove(work: Tensor, inverse: Tensor, index: Tensor) -> None:
    across = torch.linalg.solve(inverse[index][:, index], inverse[index])
    work.addmm_(work[:, index], across, alpha=-1)
    inverse.addmm_(inverse[:, index], across, alpha=-1)
    work[:, index] = 0
    inverse[index] = 0
    inverse[:, index] = 0
    inverse[index, index] = 1
