"""The LSTM language model against torch's stacked LSTM, and its regularisation against definitions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nlp.config.lstm import LSTMConfig
from nlp.lstm import LSTMLanguageModel, Output, activation_penalty, locked_dropout
from repro.ledger import rows
from repro.runs import flatten

WORDS = 30
PLAIN = LSTMConfig(6, 6, 3, dropout=0, dropouth=0, dropouti=0, dropoute=0, wdrop=0)


def build(config: LSTMConfig, train: bool = True) -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(config, WORDS).train(train)


def words(batch: int = 4, time: int = 9) -> Tensor:
    return torch.randint(WORDS, (batch, time), generator=torch.Generator().manual_seed(1))


def stacked(model: LSTMLanguageModel) -> nn.LSTM:
    """Return torch's LSTM of several layers, of one width, with the model's weights."""
    config = model.config
    lstm = nn.LSTM(config.nhid, config.nhid, config.nlayers, batch_first=True)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            for name, value in layer.named_parameters():
                getattr(lstm, name.replace("l0", f"l{i}")).copy_(value)
    return lstm


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("train", [False, True])
def test_without_dropout_it_is_torchs_stacked_lstm(layers: int, train: bool) -> None:
    model = build(replace(PLAIN, nlayers=layers), train)
    ids = words()
    output = model(ids)
    expected, (h, c) = stacked(model)(model.embedding(ids))
    logits = expected @ model.embedding.weight.T + model.softmax.bias
    states = [torch.cat(column) for column in zip(*output.hidden, strict=True)]
    torch.testing.assert_close(
        (output.last, output.dropped, output.logits, *states), (expected, expected, logits, h, c)
    )


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [
        (1, 5_293_200),  # 10,000 x 400 + 10,000 + 4 x 400 (400 + 400 + 2)
        (2, 13_632_400),  # 4,010,000 + 4 x 1150 (400 + 1150 + 2) + 4 x 400 (1150 + 400 + 2)
        (3, 24_221_600),  # and 4 x 1150 (1150 + 1150 + 2) more
    ],
)
def test_parameters_with_the_ten_thousand_words_of_penn_treebank(layers: int, parameters: int) -> None:
    with torch.device("meta"):
        model = LSTMLanguageModel(LSTMConfig(nlayers=layers), 10_000)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_tied_weights_are_one_parameter_and_untied_two() -> None:
    tied, untied = build(LSTMConfig(6, 8, 2)), build(LSTMConfig(6, 8, 2, tied=False))
    assert tied.softmax.weight is tied.embedding.weight
    assert tied.layers[-1].hidden_size == 6
    assert "softmax.weight" in dict(untied.named_parameters())
    assert untied.layers[-1].hidden_size == untied.softmax.in_features == 8
    for weight in (tied.embedding.weight, untied.embedding.weight, untied.softmax.weight):
        assert 0.09 < weight.abs().max() <= 0.1


def test_a_carried_state_makes_segments_one_long_pass() -> None:
    model = build(LSTMConfig(6, 8, 3), train=False)
    ids = words(time=20)
    whole = model(ids)
    hidden, logits = None, []
    for segment in ids.split(7, dim=1):
        output = model(segment, hidden)
        hidden = output.hidden
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=0, atol=1e-6)
    for ours, theirs in zip(hidden, whole.hidden, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_weight_drop_is_dropout_on_the_recurrent_matrix_whose_raw_weight_gets_the_gradient() -> None:
    model = build(replace(PLAIN, nlayers=1, wdrop=0.5))
    (layer,) = model.layers
    ids, state = words(), [(torch.ones(1, 4, 6), torch.ones(1, 4, 6))]
    torch.manual_seed(3)
    output = model(ids, state)
    output.last.square().sum().backward()

    torch.manual_seed(3)
    mask = F.dropout(torch.ones(24, 6), 0.5)
    assert set(mask.unique().tolist()) == {0, 2}
    other = nn.LSTM(6, 6, batch_first=True)
    other.load_state_dict({**layer.state_dict(), "weight_hh_l0": layer.weight_hh_l0.detach() * mask})
    expected, (h, c) = other(model.embedding(ids).detach(), state[0])
    expected.square().sum().backward()
    torch.testing.assert_close(output.last, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(output.hidden[0], (h, c), rtol=1e-6, atol=1e-7)
    for name, parameter in layer.named_parameters():
        gradient = getattr(other, name).grad
        expected_gradient = gradient * mask if name == "weight_hh_l0" else gradient
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-5, atol=1e-6)


def test_weight_drop_drops_its_share_anew_each_time() -> None:
    model = build(LSTMConfig(100, 100, 1, dropout=0, dropouti=0, dropoute=0, wdrop=0.3))
    (layer,) = model.layers
    masks = []
    for _ in range(2):
        layer.zero_grad()
        model(words(batch=8)).last.square().sum().backward()
        masks.append(layer.weight_hh_l0.grad == 0)
        assert masks[-1].float().mean() == pytest.approx(0.3, abs=0.01)  # of 40,000: 4 deviations
        assert not (layer.weight_ih_l0.grad == 0).any()
    assert (masks[0] != masks[1]).float().mean() == pytest.approx(2 * 0.3 * 0.7, abs=0.01)


def test_the_first_segment_starts_from_zeros_with_weight_drop_too() -> None:
    model = build(replace(PLAIN, wdrop=0.5))
    zeros = [(torch.zeros(1, 4, 6), torch.zeros(1, 4, 6)) for _ in range(3)]
    torch.manual_seed(3)
    without = model(words()).logits
    torch.manual_seed(3)
    assert torch.equal(model(words(), zeros).logits, without)


def test_locked_dropout_has_one_mask_for_all_times() -> None:
    torch.manual_seed(0)
    dropped = locked_dropout(torch.full((50, 7, 80), 3.0), 0.25, training=True)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0, 4}
    assert (dropped[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.03)  # of 4,000: 4 deviations
    assert not torch.equal(dropped[0], dropped[1])  # but one for each stream
    x = torch.ones(2, 3, 4)
    assert locked_dropout(x, 0.25, training=False) is x


def test_embedding_dropout_takes_a_word_away_wherever_it_is() -> None:
    model = build(replace(PLAIN, nlayers=1, dropoute=0.5))
    ids = words(8, 20)
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(ids)
    factors = seen[0] / model.embedding(ids).detach()
    per_word = [factors[ids == word].unique().tolist() for word in ids.unique()]
    assert sorted({tuple(values) for values in per_word}) == [(0.0,), (2.0,)]


def test_each_dropout_is_where_it_belongs_and_none_in_evaluation() -> None:
    for key in ("dropout", "dropouth", "dropouti", "dropoute", "wdrop"):
        model = build(replace(PLAIN, **{key: 0.5}))
        plain = build(PLAIN)(words())
        output = model(words())
        assert not torch.equal(output.logits, plain.logits), key
        assert torch.equal(output.last, plain.last) == (key == "dropout"), key
        assert torch.equal(output.hidden[0][0], plain.hidden[0][0]) == (key in ("dropout", "dropouth")), key
        assert torch.equal(model.eval()(words()).logits, plain.logits), key


def test_activation_penalties_are_their_definitions() -> None:
    torch.manual_seed(0)
    last, dropped = torch.randn(3, 5, 4).double(), torch.randn(3, 5, 4).double()
    output = Output(torch.empty(0), [], last, dropped)
    size = sum(float(x) ** 2 for x in dropped.flatten()) / 60
    change = sum(float(x) ** 2 for x in (last[:, 1:] - last[:, :-1]).flatten()) / 48
    assert float(activation_penalty(output, 2.0, 0.0)) == pytest.approx(2 * size, rel=1e-6)
    assert float(activation_penalty(output, 0.0, 1.0)) == pytest.approx(change, rel=1e-6)
    assert float(activation_penalty(output, 2.0, 1.0)) == pytest.approx(2 * size + change, rel=1e-6)
    one = Output(torch.empty(0), [], last[:, :1], dropped[:, :1])
    assert torch.isfinite(activation_penalty(one, 2.0, 1.0))


@pytest.mark.parametrize("wdrop", [0.0, 0.5])
def test_mixed_precision_on_a_cpu_leaves_the_lstm_alone(wdrop: float) -> None:
    model = build(replace(PLAIN, wdrop=wdrop))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(words())
        again = model(words(), output.hidden)
    assert output.logits.dtype == torch.bfloat16
    assert output.last.dtype == again.hidden[0][0].dtype == torch.float32
    torch.manual_seed(0)
    again.logits.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["adan", "adam", "adamw"])
def test_rows_are_the_models_they_say(layers: int, optimizer: str) -> None:
    recipe = rows.load(f"lstm/lstm_{layers}_{optimizer}")
    with torch.device("meta"):
        model = LSTMLanguageModel(LSTMConfig(**recipe.get("model")), recipe.get("tokenizer.vocab_size"))
        ids = torch.zeros(1, recipe.get("data.tgt_len"), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.eval()(ids)
    assert recipe.row.cost is not None
    assert recipe.row.cost.forward_flops == counter.get_total_flops()
    assert sum(p.numel() for p in model.parameters()) == recipe.row.parameters
    segments = -(-(929_589 // 20 - 1) // recipe.get("data.tgt_len"))  # of Penn Treebank's training text
    assert recipe.row.cost.samples == 20 * segments * recipe.get("epochs")
    assert (recipe.get("model.nlayers"), recipe.get("optimizer.name")) == (layers, optimizer)


def test_rows_of_as_many_layers_differ_in_the_optimizer_alone() -> None:
    adan, adamw = (flatten(rows.load(f"lstm/lstm_2_{name}").config) for name in ("adan", "adamw"))
    changed = {key for key in adan.keys() | adamw.keys() if adan.get(key) != adamw.get(key)}
    assert changed
    assert all(key.startswith("optimizer.") for key in changed)
    proxy = rows.load("lstm/lstm_2_adan", ["+proxy=lstm_adan"])
    assert proxy.row.scale == "proxy"
    assert all(
        proxy.get(f"model.{key}") == adan[f"model.{key}"] for key in ("nlayers", "tied", "alpha", "beta")
    )
    shares = [milestone / proxy.get("epochs") for milestone in proxy.get("schedule.milestones")]
    assert shares == pytest.approx([0.5, 0.725], abs=0.1)
