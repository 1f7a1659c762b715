"""Adam-mini: blocks of every model's structure, the official rules by name; against other code.

pytorch_optimizer's AdamMini has the same update with other blocks: embeddings and the output have a second
moment for every element, values, mlps and biases one for the whole tensor. Where the rules below give those
blocks the two agree.
"""

import copy
import pickle

import numpy as np
import pytest
import pytorch_optimizer
import timm
import torch
import torchvision
import transformers
from harness import FLAGS, array, assert_same_bits, needs_names, random, tensors_of
from test_blocks import CUTS, by_hand
from torch import nn

import adan_optim
from adam_mini import Adam_mini
from adan_optim import AdamMini, build_optimizer, partition
from adan_optim.engine.blocks import canonical

# Small transformers: 4 heads, half as many key heads where the model has them.
SIZES = dict(vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
TOKENS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
CAUSAL, PLAIN = transformers.AutoModelForCausalLM, transformers.AutoModel


def gpt2(**options):
    config = dict(vocab_size=50, n_embd=24, n_layer=1, n_head=4, n_positions=16)
    return CAUSAL.from_config(transformers.GPT2Config(**config, **TOKENS, **options))


def llama(**options):
    return CAUSAL.from_config(transformers.LlamaConfig(**SIZES, **TOKENS, num_key_value_heads=2, **options))


def blocks_of(model, **options):
    return {name: entry.blocks for name, entry in partition(model, **options).items()}


def set_gradients(named, seed):
    rng = np.random.default_rng(seed)
    for _, p in named:
        p.grad = random(tuple(p.shape), rng, p.dtype)


# ---- partitions


def attention(prefix, **blocks):
    return {f"{prefix}.{name}.weight": (n,) if isinstance(n, int) else n for name, n in blocks.items()}


def test_gpt2():
    """Weights are [in, out]: heads and output neurons are columns. The tied lm_head is the embedding."""
    found = blocks_of(gpt2())
    h = "transformer.h.0"
    matrices = {
        "transformer.wte.weight": (50,),
        "transformer.wpe.weight": (16,),
        **attention(f"{h}.attn", c_attn=(1, 12), c_proj=(1, 24)),
        **attention(f"{h}.mlp", c_fc=(1, 96), c_proj=(1, 24)),
    }
    norms = {f"{x}.weight": (1,) for x in (f"{h}.ln_1", f"{h}.ln_2", "transformer.ln_f")}
    assert {name: n for name, n in found.items() if not name.endswith("bias")} == {**matrices, **norms}
    model = dict(gpt2().named_parameters())
    assert all(found[name] == (model[name].numel(),) for name in found if name.endswith("bias"))
    assert partition(gpt2())["transformer.wte.weight"].reason.endswith("tied")


def test_llama_with_fewer_key_heads():
    layer = "model.layers.0"
    assert blocks_of(llama()) == {
        "model.embed_tokens.weight": (50,),
        **attention(f"{layer}.self_attn", q_proj=4, k_proj=2, v_proj=12, o_proj=24),
        **attention(f"{layer}.mlp", gate_proj=32, up_proj=32, down_proj=24),
        **attention(layer, input_layernorm=1, post_attention_layernorm=1),
        "model.norm.weight": (1,),
        "lm_head.weight": (50,),
    }


def model_of(config, kind=CAUSAL, **options):
    return kind.from_config(getattr(transformers, config)(**{**SIZES, **TOKENS, **options}))


@pytest.mark.skipif(transformers.__version__ < "5", reason="models as transformers 5 builds them")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        # heads that are wider than dim / n_heads
        (lambda: model_of("GemmaConfig", num_key_value_heads=2, head_dim=8),
         attention("model.layers.0.self_attn", q_proj=4, k_proj=2, v_proj=16, o_proj=24)),
        (lambda: model_of("Qwen3Config", num_key_value_heads=2, head_dim=8),
         attention("model.layers.0.self_attn", q_proj=4, k_proj=2, q_norm=1, k_norm=1)),
        # LayerNorm below "embeddings"
        (lambda: model_of("BertConfig", PLAIN),
         {"embeddings.LayerNorm.weight": (1,), "embeddings.position_embeddings.weight": (512,),
          **attention("encoder.layer.0.attention.self", query=4, key=4, value=24)}),
        # query, key and value in one weight
        (lambda: model_of("Phi3Config", num_key_value_heads=2),
         attention("model.layers.0.self_attn", qkv_proj=8, o_proj=24)),
        (lambda: model_of("GPTNeoXConfig"), attention("gpt_neox.layers.0.attention", query_key_value=12)),
        (lambda: model_of("FalconConfig", multi_query=True),
         attention("transformer.h.0.self_attention", query_key_value=6)),
        # experts: [expert, out, in], and transposed
        (lambda: model_of("MixtralConfig", num_local_experts=4, num_key_value_heads=2).model.layers[0].mlp,
         {"experts.gate_up_proj": (4 * 64,), "experts.down_proj": (4 * 24,), "gate.weight": (4,)}),
        (lambda: model_of("GptOssConfig", num_local_experts=4, num_key_value_heads=2).model.layers[0].mlp,
         {"experts.gate_up_proj": (4, 1, 64), "experts.down_proj": (4, 1, 24),
          "experts.down_proj_bias": (4 * 24,)}),
        # a table that has "bias" in its name
        (lambda: PLAIN.from_config(transformers.T5Config(
            vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=4)),
         {**attention("encoder.block.0.layer.0.SelfAttention", q=4, k=4, v=32, o=24),
          **attention("encoder.block.0.layer.0.SelfAttention", relative_attention_bias=32)}),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=1),
         {"blocks.0.attn.qkv.weight": (9,), "blocks.0.attn.proj.weight": (192,), "pos_embed": (197,),
          "cls_token": (1,), "patch_embed.proj.weight": (192,), "blocks.0.norm1.weight": (1,)}),
        (lambda: nn.TransformerEncoderLayer(24, 4, 32),
         {"self_attn.in_proj_weight": (12,), "self_attn.in_proj_bias": (72,),
          "self_attn.out_proj.weight": (24,), "linear1.weight": (32,), "norm1.weight": (1,),
          "norm1.bias": (24,)}),
        (lambda: nn.MultiheadAttention(24, 4, kdim=5, vdim=7),
         {"q_proj_weight": (4,), "k_proj_weight": (4,), "v_proj_weight": (24,)}),
        (lambda: torchvision.models.resnet18(),
         {"conv1.weight": (64,), "bn1.weight": (1,), "layer1.0.conv1.weight": (64,), "fc.weight": (1000,)}),
        (lambda: nn.ConvTranspose2d(4, 6, 3), {"weight": (1, 6, 1, 1), "bias": (6,)}),
        (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), {"weight": (2, 3, 1)}),
        (lambda: nn.LSTM(3, 5), {"weight_ih_l0": (20,), "bias_ih_l0": (20,)}),
        (lambda: nn.LayerNorm((3, 4)), {"weight": (1,), "bias": (12,)}),
    ],
)  # fmt: skip
def test_blocks_of_models(make, expected):
    found = blocks_of(make())
    assert {name: found[name] for name in expected} == expected


class Lora(nn.Module):
    """A frozen query projection and its low-rank update, as PEFT has it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(24, 24, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(24, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 24, bias=False)})


class Attention(nn.Module):
    def __init__(self, projection, **sizes):
        super().__init__()
        self.q_proj, self.k_proj = projection(), projection()
        for key, value in sizes.items():
            setattr(self, key, value)


def test_low_rank_updates():
    model = Attention(Lora, num_heads=4)
    assert blocks_of(model) == {
        f"{x}_proj.lora_{y}.default.weight": (n,) for x in "qk" for y, n in (("A", 2), ("B", 24))
    }
    model.requires_grad_(True)
    assert blocks_of(model)["q_proj.base_layer.weight"] == (4,)


def test_heads_that_are_told():
    def blocks(sizes=None, **told):
        found = blocks_of(Attention(lambda: nn.Linear(24, 24, bias=False), **(sizes or {})), **told)
        return found["q_proj.weight"][0], found["k_proj.weight"][0]

    assert blocks() == (24, 24)  # nobody knows
    assert blocks(n_heads=6) == (6, 6)
    assert blocks(n_heads=6, n_kv_heads=2) == (6, 2)
    assert blocks(head_dim=8) == (3, 3)
    assert blocks(dict(num_heads=4)) == (4, 4)
    assert blocks(dict(num_heads=4, head_dim=3)) == (8, 8)
    assert blocks(dict(num_heads=4), n_heads=2) == (2, 2)
    assert blocks(dict(num_heads=5)) == (24, 24)  # which is not of these weights
    whole = blocks_of(model_of("Phi3Config", num_key_value_heads=2), n_heads=4, n_kv_heads=2)
    assert whole["model.layers.0.self_attn.qkv_proj.weight"] == (4 + 2 + 2,)
    with pytest.raises(ValueError, match=r"\.q_proj\.weight .*24 output rows.*n_heads=7"):
        blocks(n_heads=7)
    with pytest.raises(ValueError, match="head_dim=7"):
        blocks(head_dim=7)
    with pytest.raises(ValueError, match="n_kv_heads=5"):
        blocks(n_heads=4, n_kv_heads=5)
    for value in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"n_heads={value}: give a whole number"):
            blocks(n_heads=value)


def test_rules():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.LayerNorm(8))

    def found(rules):
        return [n if len(n) > 1 else n[0] for n in blocks_of(model, rules=rules).values()]

    assert found(None) == [6, 6, 8, 8, 1, 8]
    assert found({nn.Linear: "tensor"}) == [1, 6, 1, 8, 1, 8]
    assert found({r"^1\.": "element"}) == [6, 6, 48, 8, 1, 8]
    assert found({model[0].weight: "column", nn.Linear: 2}) == [(1, 4), 6, 2, 8, 1, 8]
    assert found({r"0\.weight": (3, 2), r"weight": "row"}) == [(3, 2), 6, 8, 8, 1, 8]
    assert partition(model, rules={"0": "row"})["0.bias"].reason == "rule: row"
    for rules, message in [
        ({r"0\.weight": 5}, r"rule 5 does not divide 0\.weight of shape \(6, 4\)"),
        ({r"0\.weight": 0}, "rule 0 does not divide"),
        ({r"0\.weight": (2, 3)}, r"rule \(2, 3\) does not divide"),
        ({r"0\.bias": "column"}, r"rule 'column' does not divide 0\.bias"),
        ({r"0\.bias": "rows"}, "rule 'rows' for 0.bias: use 'row', 'column', 'tensor', 'element'"),
        ({r"2\.wieght": "row"}, r"the rule for '2\\\\.wieght' matches no trainable parameter"),
        ({nn.Conv2d: "row"}, "Conv2d.* matches no trainable parameter"),
        ({nn.Linear: "row", r"1\.weight": "row"}, "or only after another"),
        ({torch.ones(2, 3): "row"}, r"a parameter of shape \(2, 3\) matches no"),
    ]:
        with pytest.raises(ValueError, match=message):
            partition(model, rules=rules)


def test_the_table():
    model = nn.Sequential(nn.Linear(4, 6), nn.ParameterList([torch.ones(5, 2)]))
    model[0].bias.requires_grad_(False)
    assert str(partition(model)).splitlines() == [
        "parameter  shape  blocks  why",
        "0.weight   6 x 4  6       Linear: output row",
        "1.0        5 x 2  5       shape alone, ParameterList is not known: row",
        "34 elements in 11 blocks: 67.65 % of v is removed",
    ]


# ---- the optimizer


@pytest.mark.parametrize("path", ["foreach", "reference"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_rule_with_any_blocks(path, decay):
    """Against the formula, with each element's block looked up."""
    cuts = [(shape, blocks) for shape, blocks in CUTS if len(shape) > 1]
    rng = np.random.default_rng(0)
    model = nn.ParameterList([random(shape, rng, torch.float64) for shape, _ in cuts])
    rules = {p: blocks for p, (_, blocks) in zip(model, cuts, strict=True)}
    optimizer = AdamMini(
        model.parameters(),
        0.1,
        (0.7, 0.8),
        0.01,
        decay,
        partition=partition(model, rules=rules),
        **FLAGS[path],
    )
    expected = [array(p) for p in model]
    m = [np.zeros(shape) for shape, _ in cuts]
    v = [np.zeros(np.prod(blocks)) for _, blocks in cuts]
    for t in range(1, 6):
        for i, (p, (shape, blocks)) in enumerate(zip(model, cuts, strict=True)):
            p.grad = random(shape, rng, torch.float64)
            g, index = array(p.grad), by_hand(shape, blocks)
            m[i] = 0.7 * m[i] + 0.3 * g
            mean = np.array([(g[index == b] ** 2).mean() for b in range(len(v[i]))])
            v[i] = 0.8 * v[i] + 0.2 * mean
            u = m[i] / (1 - 0.7**t) / (np.sqrt(v[i] / (1 - 0.8**t)) + 0.01)[index]
            expected[i] = expected[i] * (1 - 0.1 * decay) - 0.1 * u
        optimizer.step()
    for i, p in enumerate(model):
        assert optimizer.state[p]["exp_avg_sq"].shape == canonical(*cuts[i])
        np.testing.assert_allclose(array(p), expected[i], rtol=1e-12)
        np.testing.assert_allclose(array(optimizer.state[p]["exp_avg_sq"]).ravel(), v[i], rtol=1e-12)


@pytest.mark.parametrize("path", ["foreach", "reference"])
def test_every_element_a_block_is_adamw(path):
    model = gpt2()
    twin = copy.deepcopy(model)
    ours = build_optimizer(
        model, "adam_mini", weight_decay=0.1, partition=partition(model, rules={"": "element"}), **FLAGS[path]
    )
    theirs = build_optimizer(twin, "adamw", weight_decay=0.1, **FLAGS[path])
    for seed in range(20):
        set_gradients(model.named_parameters(), seed)
        set_gradients(twin.named_parameters(), seed)
        ours.step()
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_partition_matters():
    """And is that of the model, where the optimizer is built from one."""
    results = []
    for rules in (None, {r"c_attn\.weight": "tensor"}):
        torch.manual_seed(0)
        model = gpt2()
        given = dict(partition=partition(model, rules=rules)) if rules else {}
        optimizer = build_optimizer(model, "adam_mini", lr=0.1, **given)
        set_gradients(model.named_parameters(), 0)
        optimizer.step()
        weight = model.transformer.h[0].attn.c_attn.weight
        results.append((weight.detach(), optimizer.state[weight]["exp_avg_sq"].shape))
    assert not torch.equal(results[0][0], results[1][0])
    assert [shape for _, shape in results] == [(1, 12), (1,)]


@needs_names
def test_parameters_outside_the_partition():
    model, other = nn.Linear(4, 6), nn.Linear(4, 6)
    with pytest.raises(ValueError, match=r"group 0: parameter 0 of shape \(6, 4\) is not in the partition"):
        AdamMini(other.parameters(), partition=partition(model))
    named = AdamMini(other.named_parameters(), partition=partition(model))  # by name
    assert named.state_spec(other.bias, {}).small == (("exp_avg_sq", (6,)),)
    with pytest.raises(ValueError, match=r"weight of shape .* is not in the partition"):
        AdamMini(nn.Linear(4, 7).named_parameters(), partition=partition(model))
    with pytest.raises(TypeError, match=r"give what adan_optim\.partition"):
        AdamMini(model.parameters(), partition={"weight": 3})


def test_checkpoints_of_another_partition():
    def trained(rules):
        torch.manual_seed(0)
        model = gpt2()
        optimizer = build_optimizer(model, "adam_mini", partition=partition(model, rules=rules))
        set_gradients(model.named_parameters(), 0)
        optimizer.step()
        return model, optimizer

    _, one = trained(None)
    model, two = trained({r"attn\.c_proj\.weight": "row"})  # square: as many blocks, but others
    with pytest.raises(
        ValueError, match=r"another partition: .*\(24, 24\) has blocks \(1, 24\) there and \(24,\)"
    ):
        two.load_state_dict(one.state_dict())
    _, same = trained(None)
    set_gradients(model.named_parameters(), 1)
    same.load_state_dict(one.state_dict())
    assert_same_bits(tensors_of(same), tensors_of(one))


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_the_partition(carry):
    model = gpt2()
    pair = model, build_optimizer(model, "adam_mini", lr=0.1)
    other = carry(pair)
    for m, optimizer in (pair, other):
        set_gradients(m.named_parameters(), 0)
        optimizer.step()
    assert_same_bits(tensors_of(pair[1]), tensors_of(other[1]))
    carry(pair)[1].load_state_dict(pair[1].state_dict())  # which asks for blocks before the copy's first step


def test_half_the_state():
    model = CAUSAL.from_config(
        transformers.GPT2Config(vocab_size=500, n_embd=128, n_layer=2, n_head=4, n_positions=64, **TOKENS)
    )
    count = sum(p.numel() for p in model.parameters())
    for kept, size in ((None, 4), ("bfloat16", 2), ("int8", 1.016)):
        optimizer = build_optimizer(model, "adam_mini", state_dtype=kept, min_int8_size=0)
        set_gradients(model.named_parameters(), 0)
        optimizer.step()
        held = adan_optim.state_bytes(optimizer)
        held.pop("step")
        assert sum(held.values()) / count == pytest.approx(size, abs=0.06)
        assert held["exp_avg_sq"] / count < 0.05


def test_it_learns():
    """A small language model, with the learning rate of AdamW, as well as AdamW."""
    losses = {}
    for name in ("adam_mini", "adamw"):
        torch.manual_seed(0)
        model = llama()
        optimizer = build_optimizer(model, name, lr=5e-3)
        tokens = torch.arange(64).remainder(7).view(4, 16)
        for _ in range(60):
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["adam_mini"] < 0.15
    assert losses["adam_mini"] < 1.1 * losses["adamw"]


# ---- the official rules by name


def official_blocks(name, shape, dim, n_heads):
    """Blocks of 2-D weights and of vectors, in the order of the official classes."""
    has = lambda *words: any(word in name.lower() for word in words)  # noqa: E731
    if has("bias"):
        return int(np.prod(shape))
    if has("k_proj", "q_proj", "wq", "wk", "query", "key"):
        return int(np.prod(shape)) // (dim * dim // n_heads)
    if has(
        "embd", "embed", "wte", "lm_head", "output", "final_layer", "v_proj", "wv", "value", "feed_forward"
    ):
        return shape[0]
    if has("linear", "mlp", "o_proj", "wo", "attn.proj"):
        return shape[0]
    return 1


def llama_names(dim=24, kv=12):
    yield "tok_embeddings.weight", (50, dim)
    for i in range(2):
        layer = f"layers.{i}"
        yield f"{layer}.attention.wq.weight", (dim, dim)
        yield f"{layer}.attention.wk.weight", (kv, dim)
        yield f"{layer}.attention.wv.weight", (kv, dim)
        yield f"{layer}.attention.wo.weight", (dim, dim)
        yield f"{layer}.attention.wq.bias", (dim,)
        yield f"{layer}.feed_forward.w1.weight", (32, dim)
        yield f"{layer}.feed_forward.w2.weight", (dim, 32)
        yield f"{layer}.attention_norm.weight", (dim,)
        yield f"{layer}.Unknown.weight", (dim, 5)
    yield "norm.weight", (dim,)
    yield "output.weight", (50, dim)


@pytest.mark.parametrize("path", ["foreach", "reference"])
def test_the_official_update(path):
    """On Llama's names over 30 steps, written down from the official rules."""
    rng = np.random.default_rng(0)
    named = [(name, random(shape, rng, torch.float64).requires_grad_()) for name, shape in llama_names()]
    optimizer = Adam_mini(
        iter(named), 0.05, (0.8, 0.9), 1e-3, 0.2, dim=24, n_heads=4, verbose=False, **FLAGS[path]
    )
    expected = {name: array(p) for name, p in named}
    m = {name: 0.0 for name, _ in named}
    v = {name: 0.0 for name, _ in named}
    for t in range(1, 31):
        for name, p in named:
            p.grad = random(tuple(p.shape), rng, torch.float64)
            g = array(p.grad)
            rows = g.reshape(official_blocks(name, g.shape, 24, 4), -1)
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * (rows**2).mean(1, keepdims=True)
            h = np.sqrt(v[name]) / np.sqrt(1 - 0.9**t) + 1e-3
            decay = 0 if any(word in name.lower() for word in ("norm", "ln", "bias")) else 0.2
            update = ((m[name] / (1 - 0.8**t)).reshape(rows.shape) / h).reshape(g.shape)
            expected[name] = expected[name] * (1 - 0.05 * decay) - 0.05 * update
        optimizer.step()
    for name, p in named:
        np.testing.assert_allclose(array(p), expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert [group["name"] for group in optimizer.param_groups] == [name.lower() for name, _ in named]


def test_name_sets_can_be_edited_before_the_first_step():
    def blocks(edit, **options):
        named = [(name, torch.zeros(shape, requires_grad=True)) for name, shape in llama_names()]
        optimizer = Adam_mini(named, dim=24, n_heads=4, verbose=False, **options)
        edit(optimizer)
        set_gradients(named, 0)
        optimizer.step()
        return {name: optimizer.state[p]["exp_avg_sq"].numel() for name, p in named}

    layer = "layers.0.attention"
    plain = blocks(lambda optimizer: None)
    edited = blocks(lambda optimizer: setattr(optimizer, "wv_names", {}))
    assert {name for name in plain if plain[name] != edited[name]} == {
        f"layers.{i}.attention.wv.weight" for i in (0, 1)
    }
    assert (plain[f"{layer}.wv.weight"], edited[f"{layer}.wv.weight"]) == (12, 1)
    assert plain[f"{layer}.wk.weight"] == 2
    told = blocks(lambda optimizer: None, n_kv_heads=1)
    assert {name for name in plain if plain[name] != told[name]} == {
        f"layers.{i}.attention.wk.weight" for i in (0, 1)
    }
    assert told[f"{layer}.wk.weight"] == 1
    assert blocks(lambda optimizer: optimizer.embd_names.clear())["tok_embeddings.weight"] == 1


def test_where_the_official_code_stops():
    """Vectors under an embedding, weights of four dimensions, heads of another size, shared sizes."""
    shapes = {
        "embeddings.LayerNorm.weight": ((24,), 1),
        "embeddings.pos_embed": ((1, 7, 24), 7),
        "linear_conv.weight": ((6, 4, 3, 3), 6),
        "layer.query.weight": ((20, 30), 4),
        "layer.key.weight": ((6, 5), 6),
        "layer.wq.scale": ((5,), 1),
        "wq.lora_A": ((2, 24), 2),
    }
    named = [(name, torch.zeros(shape, requires_grad=True)) for name, (shape, _) in shapes.items()]
    optimizer = Adam_mini(named, dim=24, n_heads=4, verbose=False)
    set_gradients(named, 0)
    optimizer.step()
    found = {name: optimizer.state[p]["exp_avg_sq"].numel() for name, p in named}
    assert found == {name: n for name, (_, n) in shapes.items()}


def test_it_prints_its_partition_once(capsys):
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_()
    model[0].bias.requires_grad_(False)
    optimizer = Adam_mini(model.named_parameters(), model_sharding=True)
    assert len(optimizer.param_groups) == 1
    model(torch.ones(1, 2)).sum().backward()
    assert not capsys.readouterr().out
    optimizer.step()
    out = capsys.readouterr().out
    assert "0.weight" in out
    assert "4 elements in 1 blocks" in out
    optimizer.step()
    assert not capsys.readouterr().out


def test_the_drop_in_is_copied_and_loaded():
    model = llama()
    pair = model, Adam_mini(model.named_parameters(), 0.1, dim=24, n_heads=4, verbose=False)
    pair[1].wv_names = {}
    other = copy.deepcopy(pair)
    for m, optimizer in (pair, other):
        set_gradients(m.named_parameters(), 0)
        optimizer.step()
    assert_same_bits(tensors_of(pair[1]), tensors_of(other[1]))
    fresh = Adam_mini(model.named_parameters(), dim=24, n_heads=4, verbose=False)
    fresh.wv_names = {}
    fresh.load_state_dict(pair[1].state_dict())
    assert_same_bits(tensors_of(fresh), tensors_of(pair[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dim=0), "dim=0: give a whole number >= 1"),
        (dict(n_heads=2.5), "n_heads=2.5"),
        (dict(n_kv_heads=0), "n_kv_heads=0"),
        (dict(n_heads=6, n_kv_heads=4), "n_kv_heads=4: must divide n_heads=6"),
        (dict(dim=4, n_heads=6), "n_heads=6: more than dim=4"),
    ],
)
def test_sizes_of_the_drop_in(options, message):
    with pytest.raises(ValueError, match=message):
        Adam_mini([("weight", torch.ones(2, 2, requires_grad=True))], **options)


def test_the_drop_in_needs_names():
    p = torch.ones(2, 2, requires_grad=True)
    for given, what in (([p], "Tensor"), ([{"params": [p]}], "dict")):
        with pytest.raises(
            TypeError, match=rf"give model\.named_parameters\(\), not a {what}; adan_optim\.AdamMini"
        ):
            Adam_mini(given)


def test_against_pytorch_optimizer():
    """Its blocks, given as rules: every element of embeddings, heads, and one for everything else."""
    torch.manual_seed(0)
    model = llama().double()
    twin = copy.deepcopy(model)
    theirs = pytorch_optimizer.AdamMini(
        twin,
        lr=0.02,
        betas=(0.8, 0.9),
        weight_decay=0.1,
        num_embeds=24,
        num_heads=4,
        num_query_groups=2,
        eps=1e-3,
    )
    rules = {r"embed_tokens|lm_head": "element", r"q_proj": 4, r"k_proj": 2, r"": "tensor"}
    groups = [
        {"params": [p], "weight_decay": 0.0 if "norm" in name else 0.1}
        for name, p in model.named_parameters()
    ]
    ours = AdamMini(groups, 0.02, (0.8, 0.9), 1e-3, partition=partition(model, rules=rules))
    for seed in range(30):
        set_gradients(model.named_parameters(), seed)
        set_gradients(twin.named_parameters(), seed)
        ours.step()
        theirs.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        # it keeps its moments in float32
        np.testing.assert_allclose(array(p), array(q), rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_partition_by_its_arguments_as_a_configuration_has_them() -> None:
    model = nn.Linear(8, 4)
    asked = {"name": "adam_mini", "partition": {"rules": {"weight": "tensor"}}}
    blocks = build_optimizer(model, asked).partition
    assert (blocks["weight"].blocks, blocks["bias"].blocks) == ((1,), (4,))
    with pytest.raises(ValueError, match="nothing"):
        build_optimizer(model, {"name": "adam_mini", "partition": {"rules": {"nothing": "tensor"}}})
