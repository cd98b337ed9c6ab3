"""Who likes what: a recommender learned from pairs of users and items. `jobs/recommender.yaml` trains it.

Matrix factorisation with biases (Koren, Bell and Volinsky 2009). B pairs, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Recommender(nn.Module):
    """Reads `user` and `item` [B]; predicts how likely the user likes the item [B].

    Args:
        users, items: how many there are, numbered from 0.
        width: W, the tastes that are told apart.
    """

    def __init__(self, users: int = 60, items: int = 40, width: int = 4) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for table in (self.users, self.items, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        user, item = columns["user"], columns["item"]
        taste_B = torch.linalg.vecdot(self.users(user), self.items(item))
        logits_B = taste_B + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]
        found = {"predictions": logits_B.sigmoid()}
        if "liked" in columns:
            truth_B = columns["liked"].to(logits_B.dtype)
            found["loss"] = functional.binary_cross_entropy_with_logits(logits_B, truth_B)
        return found
