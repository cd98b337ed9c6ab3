"""Fraud among card payments: a recurrent network over the last payments of a card. `jobs/transactions.yaml` trains it.

B cards, P payments, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fraud(nn.Module):
    """Reads `amounts` and `merchants` [B, P] and the `hour` of the last payment [B]; predicts how likely fraud is [B].

    Args:
        merchants: how many kinds of merchants there are, numbered from 0.
        width: W.
    """

    def __init__(self, merchants: int = 50, width: int = 16) -> None:
        super().__init__()
        self.merchant = nn.Embedding(merchants, width)
        self.payments = nn.GRU(width + 1, width, batch_first=True)
        self.fraud = nn.Linear(width + 1, 1)

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        amounts_BP, hour_B = columns["amounts"], columns["hour"]
        # Amounts are spread over powers of ten: their logarithms are alike in size.
        steps = torch.cat([self.merchant(columns["merchants"]), amounts_BP.clamp(min=0).log1p()[..., None]], -1)
        last_BW = self.payments(steps)[0][:, -1]
        hour_B1 = (hour_B.to(last_BW.dtype) / 24)[:, None]
        logits_B = self.fraud(torch.cat([last_BW, hour_B1], -1))[:, 0]
        found = {"predictions": logits_B.sigmoid()}
        if "fraud" in columns:
            truth_B = columns["fraud"].to(logits_B.dtype)
            found["loss"] = functional.binary_cross_entropy_with_logits(logits_B, truth_B)
        return found
