"""Batched sampling from transformers' causal language models.

Every completion has its own random numbers, a function of the seed, its number and the position. They are
drawn on the CPU, so they do not depend on the device or the rest of the batch. A completion is thus the same
in any batch, except that padding and batch size change the model's rounding, which occasionally tips a
choice. The same call on the same machine returns the same text.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from repro.errors import UserError
from repro.text.tokenizers import ROLES, Tokenizer


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    first: int = 0,
    batch_size: int = 32,
) -> list[str]:
    """Return the model's completion of each prompt, without the prompt and special tokens.

    Args:
        model: any causal language model; of its generation settings, only the end of text is used.
        tokenizer: of that model.
        prompts: repeat one for several samples. Only the end is read of a prompt that leaves no room for
            `max_new_tokens` in the model's positions.
        max_new_tokens: maximum; the end of text or a stop string ends a completion earlier.
        temperature: 0 always takes the most likely token.
        top_p: sample among the most likely tokens that together have this probability.
        stop: a completion ends before the first of these strings.
        seed: of the samples.
        first: number of the first prompt. Prompts i, i + 1, ... of one call have the same random numbers as
            those of another with `first=i`.
        batch_size: completions at a time.

    Raises:
        UserError: an argument cannot work, or an empty prompt has no token to begin with.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    max_prompt_length = _max_prompt_length(model, max_new_tokens)
    encoded = [_encode(tokenizer, prompt)[-max_prompt_length:] for prompt in prompts]
    eos = end_of_text(model, tokenizer)
    texts: list[str] = []
    for start in range(0, len(encoded), batch_size):
        ids, mask = pad_left(encoded[start : start + batch_size])
        made, kept = complete(
            model,
            ids.to(model.device),
            mask.to(model.device),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            eos=eos,
            stop=StopStrings(tokenizer, stop, ids.shape[1]) if stop else None,
            seed=seed,
            first=first + start,
        )
        for row, keep in zip(made.tolist(), kept.sum(1).tolist(), strict=True):
            tokens = [token for token in row[:keep] if token not in eos]
            text = _decode(tokenizer, tokens, skip_special_tokens=True)
            texts.append(text[: min((at for word in stop if (at := text.find(word)) >= 0), default=None)])
    return texts


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos: Sequence[int] = (),
    stop: StoppingCriteria | None = None,
    seed: int = 0,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the ids that follow each prompt, and a mask of those that belong to its completion.

    The model is in evaluation mode meanwhile, and uses a key-value cache.

    Args:
        model: a causal language model, not wrapped.
        ids: prompts [batch, length], padded on the left (see pad_left).
        mask: [batch, length], 1 at tokens of the prompts and 0 at padding.
        eos: ids that end a text.
        stop: ends completions for other reasons; one of `eos`, if any, follows them.
        max_new_tokens, temperature, top_p, seed, first: as for `sample`.

    Returns:
        ids [batch, new], int64, and mask [batch, new], int64: 1 up to and including the first of `eos`, 0
        after it. new <= max_new_tokens.

    Raises:
        UserError: an argument cannot work.
    """
    if ids.shape[1] > (max_prompt_length := _max_prompt_length(model, max_new_tokens)):
        room = f"{max_new_tokens} new ones leave room for {max_prompt_length}"
        raise UserError(f"prompts of {ids.shape[1]} tokens: {room}")
    if temperature < 0:
        raise UserError(f"temperature={temperature}: must be 0 (always the most likely token) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: must lie in (0, 1]")
    processors = LogitsProcessorList()
    if temperature > 0:
        draws = uniform(seed, first, len(ids), max_new_tokens)
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_p < 1:
            processors.append(TopPLogitsWarper(float(top_p)))
        processors.append(InverseTransform(draws.to(ids.device), ids.shape[1]))
    settings = GenerationConfig(
        do_sample=False,  # the most likely of the tokens left by the processors; InverseTransform leaves one
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=list(eos) or None,
        pad_token_id=min(eos, default=0),  # follows the end of a completion
    )
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings  # its own, such as a repetition penalty, would fill in defaults
    try:
        whole = model.generate(
            ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
        )
    finally:
        model.generation_config = own
        model.train(training)
    made = whole[:, ids.shape[1] :]
    ends = torch.isin(made, torch.tensor(list(eos), dtype=made.dtype, device=made.device)).long()
    return made, (ends.cumsum(1) - ends == 0).long()


def for_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer as one of transformers."""
    ids = {role: getattr(tokenizer, role) for role in ROLES}
    special = {f"{role}_token": tokenizer.token(id) for role, id in ids.items() if id is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **special)


def pad_left(rows: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of ids padded on the left, and their mask; both [batch, longest], int64."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def end_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text for the tokenizer or the model, possibly none."""
    named = getattr(model.generation_config, "eos_token_id", None)
    of_model = named if isinstance(named, list) else [named]
    return sorted({*of_model, tokenizer.eos_token_id} - {None})


def uniform(seed: int, first: int, rows: int, steps: int) -> Tensor:
    """Return random numbers [rows, steps] in [0, 1), float32; row i depends only on seed and first + i."""
    drawn = [np.random.default_rng([seed, first + row]).random(steps, np.float32) for row in range(rows)]
    return torch.from_numpy(np.stack(drawn))


class InverseTransform(LogitsProcessor):
    """Draws a token from each row's distribution by a given number, and rules all others out.

    It is the first token at which the cumulative probability, in the vocabulary's order, exceeds the number
    (inverse transform sampling).
    """

    def __init__(self, draws: Tensor, prompt_length: int) -> None:
        """Take `draws` [batch, steps], in [0, 1)."""
        self.draws, self.prompt_length = draws, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [batch, vocabulary]: 0 for the drawn token and -infinity elsewhere.

        input_ids: [batch, length]; scores: [batch, vocabulary].
        """
        reached = scores.double().softmax(-1).cumsum(-1)
        number = self.draws[:, input_ids.shape[1] - self.prompt_length, None] * reached[:, -1:]
        token = torch.searchsorted(reached, number, right=True).clamp(max=scores.shape[-1] - 1)  # for a NaN
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class StopStrings(StoppingCriteria):
    """Ends completions that contain one of `strings`. Unlike transformers' class, it ignores the prompt."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt_length: int
    ) -> None:
        self.tokenizer, self.strings, self.prompt_length = tokenizer, strings, prompt_length
        # A token has at least one byte; one more, as the first may be part of a character.
        self.tail = max(len(string.encode()) for string in strings) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return True for rows that end here [batch]; input_ids: [batch, length]."""
        rows = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.tail) :].tolist()
        texts = [_decode(self.tokenizer, row, skip_special_tokens=False) for row in rows]
        ends = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(ends, device=input_ids.device)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    if ids:
        return ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise UserError("an empty prompt: the tokenizer has no token for the beginning or the end of a text")
    return [begin]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool) -> str:
    options = dict(skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return tokenizer.decode(ids, **options)


def _max_prompt_length(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Return the maximum length of a prompt in tokens."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return torch.iinfo(torch.int64).max
    if max_new_tokens >= positions:
        room = f"must leave room for a prompt in {positions} positions"
        raise UserError(f"max_new_tokens={max_new_tokens}: {room}")
    return int(positions) - max_new_tokens
