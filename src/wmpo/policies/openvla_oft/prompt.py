"""Instructions as token numbers, in the prompt that OpenVLA was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wmpo.errors import UserError
from wmpo.io.files import atomic_write
from wmpo.policies.openvla_oft.networks import transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"


class Prompt:
    """A tokenizer read from its JSON: plain data, no code."""

    def __init__(self, tokenizer: Tokenizer, where: str | Path) -> None:
        """`tokenizer`: begins every sentence as Llama's does."""
        tokenizer.no_truncation()  # a tokenizer.json may hold what somebody's batches once needed
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.empty, self.end = (self._number(name, where) for name in ("▁", "</s>"))

    def _number(self, name: str, where: str | Path) -> int:
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise UserError(f"{where} is no tokenizer of a Llama, since it has no token {name!r}.")
        return number

    def ids(self, instruction: Sequence[str], actions: int) -> tuple[Tensor, Tensor]:
        """(B, longest) token numbers, the end repeated as padding, and the length (B,) of each row.

        A row is the prompt, the empty token that stands before answers, places for `actions` tokens, and the end.
        """
        prompts = [PROMPT.format(instruction=sentence.lower()) for sentence in instruction]
        answer = [self.empty] * (1 + actions) + [self.end]
        rows = [self.tokenizer.encode(prompt).ids + answer for prompt in prompts]
        length = torch.tensor([len(row) for row in rows])
        longest = int(length.max())
        return torch.tensor([row + [self.end] * (longest - len(row)) for row in rows]), length

    def save(self, folder: Path) -> None:
        atomic_write(Path(folder) / TOKENIZER, self.tokenizer.to_str())

    @classmethod
    def load(cls, folder: Path) -> Prompt:
        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise UserError(f"{path} does not exist: an OpenVLA-OFT needs the tokenizer that it was trained with.")
        transformers()  # says what to install; tokenizers comes with it
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)), path)
        except UserError:
            raise
        except Exception as error:  # tokenizers raises nothing more particular
            raise UserError(f"{path} is damaged or no tokenizer: {error}.") from None
