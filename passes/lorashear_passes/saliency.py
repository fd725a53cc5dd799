"""Which structures go first: training-free criteria as pure tensor functions.

A consumer is a linear map ``y = W h`` that contracts over a group, ``W`` of shape ``[out, in]``. Structure ``s`` owns the
columns ``columns[s]``, a row of an integer tensor ``[structures, width]``: one column for an MLP channel, ``head_dim`` for a
query head, ``rep * head_dim`` for a KV head with its queries. ``C = E[h h^T]``, ``[in, in]``, is the mean over calibration
tokens, so errors are mean squares per token in the units of ``y``.

Every criterion ends in an order of all structures, the first to go first. With ``blocks > 1`` the structures lie in that many
equal consecutive blocks and the order runs in rounds, one structure of each block per round, so that every prefix of
``rounds * blocks`` takes equally many from each block.
"""

import torch
from torch import Tensor

__all__ = ["damage_curve", "in_rounds", "magnitude", "obs_order", "output_energy", "random_scores", "wanda"]

DAMP = 1e-3
"""Default ridge: λ is this share of the mean diagonal of ``C``; chosen by ``tools/study_criteria.py``."""


def magnitude(squares: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of squares of all weights that a structure owns, ``[structures]`` (Han et al. 2015, per structure; no data).

    ``squares`` holds a pair per slot: sums of squares per index of the slot's dimension, ``[indices]``, and the indices of
    each structure, ``[structures, width]``.
    """
    return torch.stack([sums.double()[index].sum(1) for sums, index in squares]).sum(0)


def wanda(weight: Tensor, covariance: Tensor, columns: Tensor) -> Tensor:
    """``Σ_{j in S} ‖W_:j‖² C_jj``, ``[structures]``: Wanda (Sun et al. 2023) with squares summed per structure."""
    scores = weight.double().square().sum(0) * covariance.double().diagonal()
    return scores[columns].sum(1)


def random_scores(structures: int, generator: torch.Generator) -> Tensor:
    """Scores without knowledge, ``[structures]``, drawn on the CPU so that every device gives the same order."""
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
    weight: Tensor, covariance: Tensor, columns: Tensor, *, blocks: int = 1, damp: float = DAMP, stride: int = 1
) -> list[int]:
    """The greedy order of structured optimal brain surgeon (ZipLM, Kurtic et al. 2023; SparseGPT, Frantar & Alistarh 2023).

    With ``H = C + λI`` and the inverse over what is alive, removing S and refitting the rest costs
    ``tr(W_S ((H⁻¹)_SS)⁻¹ W_Sᵀ)``. The cheapest goes; then ``W`` and ``H⁻¹`` take their exact block update. ``stride > 1``
    removes that many of the cheapest at a time with one joint update (width 1 and one block only), for wide MLPs.
    """
    inverse = damped_inverse(covariance, damp)
    work = weight.to(inverse).clone()
    columns = columns.to(work.device)
    structures = columns.shape[0]
    alive = torch.ones(structures, dtype=torch.bool, device=work.device)
    open_blocks = torch.ones(blocks, dtype=torch.bool, device=work.device)
    block_of = torch.arange(structures, device=work.device) // (structures // blocks)
    stride = stride if columns.shape[1] == 1 and blocks == 1 else 1
    order: list[Tensor] = []
    left = structures
    while left:
        costs = _costs(work, inverse, columns).masked_fill(~(alive & open_blocks[block_of]), torch.inf)
        chosen = costs.argsort(stable=True)[: min(stride, left)]
        _remove(work, inverse, columns[chosen].flatten())
        alive[chosen] = False
        open_blocks[block_of[chosen]] = False
        left -= len(chosen)
        if (structures - left) % blocks == 0:
            open_blocks.fill_(True)
        order.append(chosen)
    return torch.cat(order).tolist()


def damage_curve(
    weight: Tensor, covariance: Tensor, columns: Tensor, order: list[int], *, damp: float = DAMP, refit: bool = True
) -> Tensor:
    """Mean squared output error after 0, 1, … removals along ``order``, ``[len(order) + 1]`` float64 on the CPU, rising.

    With ``refit`` the remaining columns are refitted by least squares after each removal: for the removed set R the error is
    ``tr(W_R ((H⁻¹)_RR)⁻¹ W_Rᵀ)``, and one Cholesky factor of ``H⁻¹`` in removal order gives it for all prefixes at once.
    Without it the error is ``tr(W_R C_RR W_Rᵀ)``.
    """
    picked = columns.to(weight.device)[torch.tensor(order, dtype=torch.long, device=weight.device)].flatten()
    if refit:
        inverse = damped_inverse(covariance, damp)
        factor = _cholesky(inverse[picked][:, picked])
        rows = torch.linalg.solve_triangular(factor, weight.to(inverse)[:, picked].T, upper=False)
        per_column = rows.square().sum(1)
    else:
        part = weight.double()[:, picked]
        gram = (part.T @ part) * covariance.to(part)[picked][:, picked]
        per_column = gram.tril().sum(1) + gram.tril(-1).sum(1)
    per_structure = per_column.double().cpu().reshape(len(order), -1).sum(1)
    return torch.cat([torch.zeros(1, dtype=torch.float64), per_structure.cumsum(0)]).cummax(0).values


def output_energy(weight: Tensor, covariance: Tensor) -> float:
    """``E‖W h‖² = tr(W C Wᵀ)``."""
    work = weight.to(covariance)
    return float(((work @ covariance) * work).sum())


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
    work -= work[:, index] @ across
    inverse -= inverse[:, index] @ across
    work[:, index] = 0
    inverse[index] = 0
    inverse[:, index] = 0
    inverse[index, index] = 1


def _cholesky(matrix: Tensor) -> Tensor:
    jitter = 0.0
    unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * unit)
        if not int(failed):
            return factor
        jitter = max(jitter * 10, 1e-12 * float(matrix.diagonal().mean()))
