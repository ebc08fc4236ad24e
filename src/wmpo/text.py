"""A small sentence encoder that is trained with whatever uses it."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor, nn

VOCABULARY = 1024
MAX_WORDS = 16


@lru_cache(maxsize=4096)
def word_ids(sentence: str) -> tuple[int, ...]:
    """MAX_WORDS hashed words, 0 where the sentence has ended. Hashing needs no vocabulary file and knows every word."""
    words = re.findall(r"[\w']+", sentence.lower())[:MAX_WORDS]
    ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return tuple(ids + [0] * (MAX_WORDS - len(ids)))


class SentenceEncoder(nn.Module):
    """Sentences -> (B, width): the mean of word embeddings, each seen together with its place in the sentence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, instruction: tuple[str, ...]) -> Tensor:
        # A batch mostly repeats a few sentences: encode each once.
        unique = sorted(set(instruction))
        device = self.place.device
        ids = torch.tensor([word_ids(sentence) for sentence in unique], device=device)  # (n, MAX_WORDS)
        valid = (ids > 0).float().unsqueeze(-1)
        features = self.mix(self.word(ids) + self.place) * valid
        encoded = features.sum(1) / valid.sum(1).clamp(min=1)
        return encoded[torch.tensor([unique.index(sentence) for sentence in instruction], device=device)]
