"""The models against transformers' own, and the numbers of parameters that were published."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM, BertForPreTraining, RobertaConfig, RobertaForMaskedLM

from nlp.bert import attention, build_classifier, build_masked_lm, longest
from nlp.config.bert import EncoderConfig
from repro.errors import UserError
from repro.verify.models import count

ROBERTA = SimpleNamespace(vocab_size=50265, pad=1, bos=0, eos=2)
WORDPIECE = SimpleNamespace(vocab_size=30522, pad=0, bos=101, eos=102)
SMALL = SimpleNamespace(vocab_size=60, pad=1, bos=0, eos=2)
BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
BERT = dict(name="bert", max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12)
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def test_sizes_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        roberta = EncoderConfig(**BASE)
        assert (
            count(build_masked_lm(roberta, ROBERTA)) == 124_696_665
        )  # the architecture in the released logs
        heads = [count(build_classifier(roberta, labels, ROBERTA, 0.0)) for labels in (1, 2, 3)]
        assert heads == [124_645_633, 124_646_402, 124_647_171]
        pairs = EncoderConfig(**BASE, **BERT, next_sentence=True)
        assert count(build_masked_lm(pairs, WORDPIECE)) == 110_106_428  # bert-base-uncased with both heads
        answers, pooler = 2 * 768 + 2, 768 * 768 + 768  # which are there for pairs alone
        words = EncoderConfig(**BASE, **BERT)
        assert count(build_masked_lm(words, WORDPIECE)) == 110_106_428 - answers - pooler


def test_operations_of_a_full_block_are_what_the_rows_say() -> None:
    with torch.device("meta"):
        model = build_masked_lm(EncoderConfig(**BASE), ROBERTA)
        ids, places = torch.zeros(1, 512, dtype=torch.long), torch.zeros(1, 77, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, attention(torch.ones(1, 512, dtype=torch.bool)), places)
    assert counter.get_total_flops() == pytest.approx(1.03e11, rel=0.005)


def sequences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three sequences, two of them padded, and two places in each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 11), generator=generator)
    seen = torch.arange(11) < torch.tensor([11, 7, 4])[:, None]
    return ids.masked_fill(~seen, 1), seen, torch.tensor([[3, 9], [1, 6], [2, 0]])


def theirs(ours: nn.Module, kind: Any) -> Any:
    """The same weights in a model of transformers."""
    model = kind(ours.config).double().eval()
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    if missing:  # fairseq has no such embedding, and zeros are no different
        assert missing == ["roberta.embeddings.token_type_embeddings.weight"]
        nn.init.zeros_(model.roberta.embeddings.token_type_embeddings.weight)
    return model


@pytest.mark.parametrize("types", [0, 2])
def test_scores_are_transformers_own_at_the_places(types: int) -> None:
    torch.manual_seed(0)
    ours = build_masked_lm(EncoderConfig(**TINY, type_vocab_size=types, max_position_embeddings=13), SMALL)
    ours = ours.double().eval()
    ids, seen, places = sequences()
    scores, _ = ours(ids, attention(seen), places)
    full = theirs(ours, RobertaForMaskedLM)(ids, attention_mask=seen.long()).logits
    torch.testing.assert_close(scores, full[torch.arange(3)[:, None], places])
    assert not torch.allclose(scores, ours(ids, None, places)[0])  # the mask matters


@pytest.mark.parametrize("pairs", [False, True])
def test_a_bert_is_transformers_own(pairs: bool) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        **TINY, name="bert", type_vocab_size=2, max_position_embeddings=11, next_sentence=pairs
    )
    ours = build_masked_lm(config, SMALL).double().eval()
    ids, seen, places = sequences()
    types = (torch.arange(11) > 3).long().expand(3, -1)
    scores, answers = ours(ids, attention(seen), places, types)
    other = theirs(ours, BertForPreTraining if pairs else BertForMaskedLM)
    output = other(ids, attention_mask=seen.long(), token_type_ids=types)
    full = output.prediction_logits if pairs else output.logits
    torch.testing.assert_close(scores, full[torch.arange(3)[:, None], places])
    if pairs:
        torch.testing.assert_close(answers, output.seq_relationship_logits)
    else:
        assert answers is None


def test_a_classifier_is_transformers_own_and_takes_the_weights() -> None:
    torch.manual_seed(0)
    pretrained = build_masked_lm(EncoderConfig(**TINY), SMALL)
    classifier = build_classifier(EncoderConfig(**TINY), 3, SMALL, dropout=0.0)
    missing, unexpected = classifier.load_state_dict(pretrained.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"classifier"}
    assert {name.split(".")[0] for name in unexpected} == {"lm_head"}
    ids, seen, _ = sequences()
    classifier.eval()
    given = classifier(ids, attention_mask=attention(seen)).logits
    assert given.shape == (3, 3)
    torch.testing.assert_close(given, classifier(ids, attention_mask=seen.long()).logits)


def test_initial_weights_are_those_of_bert() -> None:
    torch.manual_seed(0)
    model = build_masked_lm(EncoderConfig(**TINY | {"hidden_size": 128}), SMALL)
    for name, weights in model.named_parameters():
        if "norm" in name.lower():
            assert (weights == float(name.endswith("weight"))).all()
        elif name.endswith("bias"):
            assert (weights == 0).all()
        else:
            rows = weights[2:] if "embeddings" in name else weights
            assert rows.std().item() == pytest.approx(0.02, rel=0.05)
    for embedding in (model.roberta.embeddings.word_embeddings, model.roberta.embeddings.position_embeddings):
        assert (embedding.weight[1] == 0).all()  # of padding
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight


def test_positions_that_are_left_for_tokens() -> None:
    assert longest(EncoderConfig(max_position_embeddings=514), ROBERTA) == 512
    assert longest(EncoderConfig(name="bert", max_position_embeddings=512), WORDPIECE) == 512
    assert RobertaConfig().pad_token_id == ROBERTA.pad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 59}, r"model.vocab_size=59: the tokenizer has 60 tokens"),
        ({"num_attention_heads": 3}, r"model.num_attention_heads=3: must divide model.hidden_size=16"),
        ({"name": "gpt"}, r"model.name=gpt: must be one of roberta, bert"),
        ({"next_sentence": True}, r"model.next_sentence=true: needs model.name=bert"),
        ({"num_hidden_layers": 0}, r"model.num_hidden_layers=0: must be at least 1"),
        ({"type_vocab_size": -1}, r"model.type_vocab_size=-1: must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_masked_lm(EncoderConfig(**TINY | changed), SMALL)
