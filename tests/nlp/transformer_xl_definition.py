"""Transformer-XL written from its paper (arXiv 1901.02860, section 3), slowly, for one text in float64.

Attention goes pair by pair over words and the words before them, with the sines of the distance made for each
pair; nothing is shifted, masked or batched. It reads the weights of a model by their names alone.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nlp.config.transformer_xl import ModelConfig

Weights = dict[str, Tensor]


def log_probs(
    weights: Weights, options: ModelConfig, words: list[int], segments: list[int], mem_len: int
) -> Tensor:
    """Return the log-probabilities [len(words), vocabulary] after each word, read segment by segment.

    Args:
        segments: lengths, which add up to that of `words`.
        mem_len: as many states as this, of words before the segment, are there in each layer.
    """
    memory: list[list[Tensor]] = [[] for _ in range(options.n_layer)]
    found = []
    for length in segments:
        segment, words = words[:length], words[length:]
        states = [embedding(weights, options, word) for word in segment]
        for layer in range(options.n_layer):
            before = memory[layer]
            memory[layer] = (before + states)[len(before) + len(states) - mem_len :] if mem_len else []
            if len(before) + length < mem_len:
                memory[layer] = before + states
            states = block(weights, options, layer, before, states, mem_len)
        found += [word_log_probs(weights, options, state) for state in states]
    return torch.stack(found)


def embedding(weights: Weights, options: ModelConfig, word: int) -> Tensor:
    """Of part i of the vocabulary div_val**i times smaller, brought to size, and scaled."""
    part, begin = part_of(options, word) if options.div_val > 1 else (0, 0)
    vector = weights[f"word_emb.emb_layers.{part}.weight"][word - begin]
    if options.div_val > 1 or options.d_embed != options.d_model:
        vector = weights[f"word_emb.emb_projs.{part}"] @ vector
    return vector * math.sqrt(options.d_model)


def part_of(options: ModelConfig, word: int) -> tuple[int, int]:
    """The part of the vocabulary that a word is in, and the part's first word."""
    part = sum(word >= cutoff for cutoff in options.cutoffs)
    return part, [0, *options.cutoffs][part]


def block(
    weights: Weights,
    options: ModelConfig,
    layer: int,
    before: list[Tensor],
    states: list[Tensor],
    mem_len: int,
) -> list[Tensor]:
    """A layer's outputs for states and those in memory before them."""

    def w(name: str) -> Tensor:
        return weights[f"layers.{layer}.{name}"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        normed = centred / (centred.square().mean() + 1e-5).sqrt()
        return normed * w(f"{name}.weight") + w(f"{name}.bias")

    def perceptron(x: Tensor) -> Tensor:
        inner = (w("pos_ff.CoreNet.0.weight") @ x + w("pos_ff.CoreNet.0.bias")).relu()
        return w("pos_ff.CoreNet.3.weight") @ inner + w("pos_ff.CoreNet.3.bias")

    context = before + states
    if options.pre_lnorm:
        context = [norm("dec_attn.layer_norm", x) for x in context]
    heads, size = options.n_head, options.d_head
    queries, keys, values = w("dec_attn.qkv_net.weight").view(3, heads, size, -1)
    of_positions = w("dec_attn.r_net.weight").view(heads, size, -1)
    results = []
    for i, state in enumerate(states):
        here = len(before) + i
        reach = [j for j in range(here + 1) if not options.same_length or here - j < mem_len]
        outputs = []
        for head in range(heads):
            q = queries[head] @ context[here]
            scores = []
            for j in reach:
                k = keys[head] @ context[j]
                r = of_positions[head] @ sines(here - j, options)
                content, position = weights["r_w_bias"][head], weights["r_r_bias"][head]
                terms = q @ k, q @ r, content @ k, position @ r  # (a) to (d) of the paper
                scores.append(sum(terms) / math.sqrt(size))
            shares = torch.stack(scores).softmax(0)
            outputs.append(
                sum(share * (values[head] @ context[j]) for share, j in zip(shares, reach, strict=True))
            )
        x = state + w("dec_attn.o_net.weight") @ torch.cat(outputs)
        if options.pre_lnorm:
            results.append(x + perceptron(norm("pos_ff.layer_norm", x)))
        else:
            x = norm("dec_attn.layer_norm", x)
            results.append(norm("pos_ff.layer_norm", x + perceptron(x)))
    return results


def sines(distance: int, options: ModelConfig) -> Tensor:
    """The embedding of a distance: sines, then cosines."""
    if options.clamp_len > 0:
        distance = min(distance, options.clamp_len)
    half = options.d_model // 2
    angles = [distance / 10000 ** (i / half) for i in range(half)]
    values = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def word_log_probs(weights: Weights, options: ModelConfig, state: Tensor) -> Tensor:
    """The probability of a part of the vocabulary times that of a word in it, for every word."""
    ends = [*options.cutoffs, None]
    scores = []
    for part, (begin, end) in enumerate(zip([0, *options.cutoffs], ends, strict=True)):
        if options.div_val > 1:
            weight, bias = (weights[f"crit.out_layers.{part}.{name}"] for name in ("weight", "bias"))
        else:
            weight, bias = (weights[f"crit.out_layers.0.{name}"][begin:end] for name in ("weight", "bias"))
        projected = state
        if options.div_val > 1 or options.d_embed != options.d_model:
            projected = state @ weights[f"crit.out_projs.{part}"]
        scores.append(weight @ projected + bias)
        if part == 0:
            first = projected
    if len(scores) == 1:
        return F.log_softmax(scores[0], 0)
    clusters = weights["crit.cluster_weight"] @ first + weights["crit.cluster_bias"]
    head = F.log_softmax(torch.cat([scores[0], clusters]), 0)
    # the checkpoints' order: the last part's class comes first
    tails = [head[-part] + F.log_softmax(scores[part], 0) for part in range(1, len(scores))]
    return torch.cat([head[: options.cutoffs[0]], *tails])
