"""Formulas beside the package's own: other ways in which the weights of a gene's layers can come of its blocks.

default          W_l = V + (l/L) M, with V of the encoder's own and M shared
scales           W_l = diag(r_l) (V + (l/L) M) diag(c_l): the package's `weight_scales`, or one side of them
low rank         M, or the second block of each encoder, is a product of two factors
smooth           the coefficients of each layer parameter are polynomials of l/L, trained
quadratic        W_l = V_0 + (l/L) V_1 + T_2(l/L) M: two blocks of the encoder's own beside the shared one
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmlg_hf import LearngeneModel
from mmlg_hf.expansion import LAYER_AXES, MATRIX_SIDES, basis_functions, layer_positions
from mmlg_hf.modeling_encoders import MatrixScales, StackedParameters


class FormulaModel(LearngeneModel):
    """A gene with another formula; all of them compose.

    Args:
        config: of the gene, whose blocks and mixing count as ever.
        scales: "rows" and "columns", whichever have factors.
        low_rank: share of the width that is the rank of M, where there is one, and else of each encoder's second
            block; None keeps them whole. They are taken apart by `begin`, once they are fitted.
        smooth: degree of the polynomials that are added to the coefficients; None adds none.
    """

    def __init__(
        self, config: Any, *, scales: tuple[str, ...] = (), low_rank: float | None = None, smooth: int | None = None
    ) -> None:
        config.weight_scales = bool(scales)
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, MatrixScales):
                for side in set(MATRIX_SIDES) - set(scales):
                    setattr(module, side, None)
        self.low_rank = low_rank
        self.smooth = nn.ParameterDict()
        blocks = config.num_multimodal_blocks + config.num_unimodal_blocks
        for modality in config.encoder_configs if smooth is not None else ():
            self.smooth[modality] = nn.Parameter(torch.zeros(len(LAYER_AXES), smooth + 1, blocks))

    def begin(self) -> None:
        """Take apart, after the blocks were fitted, those that are products of two factors, by their singular values.

        In a stack of blocks it is the last one that becomes `left` [1, out, rank] times `right` [1, in, rank].
        """
        if self.low_rank is None:
            return
        groups = self.block_groups()
        for name in ["multimodal"] if "multimodal" in groups else list(groups):
            rank = round(self.low_rank * groups[name].layer_norm1.weight.shape[1])
            for stack in groups[name].modules():
                if isinstance(stack, StackedParameters) and stack.weight.dim() == 3:
                    *others, last = stack.weight.detach().unbind()
                    left, values, right = torch.linalg.svd(last, full_matrices=False)
                    root = values[:rank].sqrt()
                    stack.left = nn.Parameter((left[:, :rank] * root)[None].contiguous())
                    stack.right = nn.Parameter((right[:rank].mT * root)[None].contiguous())
                    stack.weight = nn.Parameter(torch.stack(others)) if others else None

    def own_parameters(self) -> list[nn.Parameter]:
        """What the study's formulas have beside blocks: it is trained at a rate of its own, without weight decay."""
        return list(self.smooth.parameters())

    def fixed_coefficients(self, depth: int) -> Tensor:
        config = self.config
        if (config.num_multimodal_blocks, config.num_unimodal_blocks) != (1, 2):
            return super().fixed_coefficients(depth)
        return basis_functions("chebyshev", 3, layer_positions(depth))[:, [2, 0, 1]]

    def coefficients(self, modality: str, depth: int | None = None) -> Tensor | dict[str, Tensor]:
        fixed = super().coefficients(modality, depth)
        if modality not in self.smooth or not isinstance(fixed, Tensor):
            return fixed
        functions = basis_functions("chebyshev", self.smooth[modality].shape[1], layer_positions(len(fixed)))
        added = torch.einsum("lk,pkn->pln", functions, self.smooth[modality])
        return {name: fixed + more for name, more in zip(LAYER_AXES, added, strict=True)}

    def layer_sources(self, modality: str, config: Any) -> tuple[Any, ...]:
        """As of any gene, once the products of two factors are put together."""
        multimodal, unimodal, *rest = super().layer_sources(modality, config)
        return (_joined(multimodal), _joined(unimodal), *rest)


def _joined(blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks with those put together that are products of two factors."""
    whole = {name: block for name, block in blocks.items() if name in LAYER_AXES}
    for name in blocks.keys() - whole.keys():
        owner, part = name.rsplit(".", 1)
        if part == "left":
            product = blocks[name] @ blocks[f"{owner}.right"].mT
            weight = f"{owner}.weight"
            whole[weight] = torch.cat([whole[weight], product]) if weight in whole else product
    return whole
