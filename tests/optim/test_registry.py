"""Building an optimizer by name from a model and a config: parameter groups, layer ids, errors, tables."""

import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harness import each_name
from torch import nn

import adan_optim
from adan_optim import build_optimizer, layer_ids, param_groups
from adan_optim.card import FusedRule
from adan_optim.engine import available, cuda, native
from adan_optim.engine.available import why_not_fused
from adan_optim.engine.storage import Storage
from adan_optim.registry import find, resolve

timm = pytest.importorskip("timm")
pytest.importorskip("timm.optim")
schedulers = pytest.importorskip("timm.scheduler")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.matrix = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(2, 2))})
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def no_weight_decay(self):
        return {"token"}


def by_name(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group for group in groups for p in group["params"]}


# ---- weight decay


@pytest.mark.parametrize("name", [*adan_optim.OPTIMIZERS, "torch.optim.SGD", "torch.optim.AdamW"])
def test_no_decay_on_biases_norms_and_what_the_model_names(name):
    model = Model()
    optimizer = build_optimizer(model, name, lr=0.1, weight_decay=0.3)
    decays = {
        n for n, group in by_name(model, optimizer.param_groups).items() if group["weight_decay"] == 0.3
    }
    others = {n for n, group in by_name(model, optimizer.param_groups).items() if group["weight_decay"] == 0}
    assert decays == {f"blocks.{i}.weight" for i in range(3)}
    assert others == {
        "token",
        "matrix.bias",
        "norm.weight",
        "norm.bias",
        *(f"blocks.{i}.bias" for i in range(3)),
    }
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_decay_on_everything():
    model = Model()
    optimizer = build_optimizer(model, "adan", weight_decay=0.3, decay_bias_and_norm=True)
    assert all(group["weight_decay"] == 0.3 for group in optimizer.param_groups)
    assert len(by_name(model, optimizer.param_groups)) == 10


def test_default_lr_and_decay_are_the_optimizers():
    for cls, decay in ((adan_optim.Adan, 0.0), (adan_optim.AdamW, 0.01)):
        groups = build_optimizer(Model(), cls.card.name).param_groups
        assert {group["weight_decay"] for group in groups} == {0.0, decay}
        assert {group["lr"] for group in groups} == {1e-3}


def test_a_vision_transformer_as_in_timm():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    groups = by_name(model, build_optimizer(model, "adan", weight_decay=0.02).param_groups)
    theirs = timm.optim.param_groups_weight_decay(model, 0.02, no_weight_decay_list=model.no_weight_decay())
    for name, group in by_name(model, theirs).items():
        assert groups[name]["weight_decay"] == group["weight_decay"], name


# ---- layer-wise learning rates


def mae_id(name, depth):
    """MAE's rule for a ViT (util/lr_decay.py), by names."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def test_layer_ids_of_a_vit_are_maes():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)
    assert layer_ids(model) == {name: mae_id(name, 12) for name, _ in model.named_parameters()}


def test_layer_decay_of_a_vit_is_timms():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)
    ours = by_name(
        model, build_optimizer(model, "adan", lr=0.2, weight_decay=0.1, layer_decay=0.75).param_groups
    )
    theirs = timm.optim.param_groups_layer_decay(
        model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
    )
    for name, group in by_name(model, theirs).items():
        expected = 0.75 ** (13 - mae_id(name, 12))
        assert ours[name]["lr"] == pytest.approx(0.2 * expected)
        if not name.startswith("norm."):  # timm: with the last block; MAE, BEiT and we: with the head
            assert ours[name]["lr"] == pytest.approx(0.2 * group["lr_scale"]), name
        assert ours[name]["weight_decay"] == group["weight_decay"], name


@pytest.mark.parametrize(
    ("model", "stem", "head", "block", "blocks"),
    [
        ("swin_tiny_patch4_window7_224", "patch_embed", "head", r"layers\.(\d+)\.blocks\.(\d+)\.", 12),
        ("convnext_atto", "stem", "head", r"stages\.(\d+)\.blocks\.(\d+)\.", 12),
        ("resnet26", "conv1", "fc", r"layer(\d+)\.(\d+)\.", 8),
    ],
)
def test_layer_ids_of_staged_models(model, stem, head, block, blocks):
    """The stem is 0, blocks count through the stages, the head comes last, and depth never goes back."""
    model = timm.create_model(model, num_classes=10)
    ids = layer_ids(model)
    assert ids.keys() == {name for name, _ in model.named_parameters()}
    assert list(ids.values()) == sorted(ids.values())
    numbered = OrderedDict()
    for name, i in ids.items():
        if name.startswith(stem):
            assert i == 0
        elif name.startswith(head):
            assert i == blocks + 1
        elif found := re.match(block, name):
            numbered.setdefault(found.groups(), set()).add(i)
    assert [*numbered.values()] == [{i + 1} for i in range(blocks)]


def test_layer_decay_counts_once_under_schedules():
    optimizer = build_optimizer(Model(), "adan", lr=1.0, layer_decay=0.5)
    built = [group["lr"] for group in optimizer.param_groups]
    assert len(set(built)) == 5
    schedulers.CosineLRScheduler(optimizer, t_initial=100).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == built
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [lr / 2 for lr in built]


def test_layer_ids_of_a_model_that_is_a_sequence():
    layers = [nn.Linear(2, 2) for _ in range(3)]
    assert layer_ids(nn.Sequential(*layers)) == {
        f"{i}.{x}": i + 1 for i in range(3) for x in ("weight", "bias")
    }
    inside = nn.Sequential(nn.Embedding(3, 2), nn.Sequential(*layers))  # blocks are the innermost
    assert [*layer_ids(inside).values()] == [0, 1, 1, 2, 2, 3, 3]


def test_layer_decay_errors():
    for bad in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match=rf"layer_decay={bad}: must be in \(0, 1\]"):
            build_optimizer(Model(), "adan", layer_decay=bad)
    with pytest.raises(ValueError, match="found no repeated blocks in Linear"):
        build_optimizer(nn.Linear(2, 2), "adan", layer_decay=0.5)
    needy = {
        "layer_decay": 0.5,
        "decay_bias_and_norm": True,
        "embedding_state_dtype": "float32",
        "lr_scales": {"a": 2},
    }
    for option in ({name: value} for name, value in needy.items()):
        with pytest.raises(ValueError, match="need the model"):
            build_optimizer(Model().parameters(), "adan", **option)


def test_parts_have_their_own_learning_rates():
    """The first pattern that matches counts, together with layer_decay and the weight decay."""
    model = nn.Sequential(OrderedDict(encoding=nn.Embedding(3, 2), net=nn.Linear(2, 2), out=nn.Linear(2, 1)))
    scales = {"encoding": 10, r"net\.bias$": 0.5, "net": 2}
    optimizer = build_optimizer(model, "adan", lr=0.1, weight_decay=0.3, lr_scales=scales)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, group in by_name(model, optimizer.param_groups).items()
    }
    assert found == {
        "encoding.weight": (pytest.approx(1.0), 0.3),
        "net.weight": (pytest.approx(0.2), 0.3),
        "net.bias": (pytest.approx(0.05), 0.0),
        "out.weight": (0.1, 0.3),
        "out.bias": (0.1, 0.0),
    }
    assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"nothing": 2}, "'nothing' matches no trainable parameter"),
        ({"block": 2, "blocks.0": 3}, "'blocks.0' matches no trainable parameter that no pattern before it"),
        ({"(": 2}, "is no regular expression"),
        ({"block": -1}, r"lr_scales\['block'\]=-1"),
        ({"block": "x"}, r"lr_scales\['block'\]='x'"),
    ],
)
def test_bad_lr_scales(scales, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build_optimizer(Model(), "adan", lr_scales=scales)


def test_a_pattern_without_match_is_answered_in_one_line():
    """A few names show how they look, whatever the size of the model."""
    with pytest.raises(ValueError, match=r"there are 0\.weight, 0\.bias, 1\.weight, 1\.bias and 96 more$"):
        build_optimizer(nn.Sequential(*(nn.Linear(2, 2) for _ in range(50))), "adan",
                        lr_scales={"nothing": 2})  # fmt: skip


def test_groups_train():
    """The groups are valid for our optimizers and the learning rates are used."""
    model = Model()
    optimizer = build_optimizer(model, "adan", lr=0.1, layer_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    for name, group in by_name(model, param_groups(model, 0.1, 0.0, layer_decay=0.5)).items():
        moved = (before[name] - model.get_parameter(name)).abs().max()
        assert moved.item() == pytest.approx(group["lr"], rel=1e-4)


# ---- names and configs


@each_name
def test_by_name(name):
    for spelling in (name, name.upper(), adan_optim.OPTIMIZERS[name].card.title):
        assert type(build_optimizer(Model(), spelling)) is adan_optim.OPTIMIZERS[name]


COMMAND_LINE = sorted((Path(__file__).parents[2] / "configs/optimizer").glob("[a-z]*.yaml"))


@pytest.mark.parametrize("file", COMMAND_LINE, ids=lambda file: file.stem)
def test_names_of_the_command_line(file):
    """Each is a name here, of the same class, with the states in the same number of bits."""
    config = file.read_text()
    name = re.search(r"^(?:name:|  -) (\S+)$", config, re.M)[1]
    if name.startswith("apex"):  # which is not on any index
        with pytest.raises(ValueError, match=rf"unknown optimizer '{name}': No module named 'apex'"):
            resolve(file.stem)
        return
    options = {"state_dtype": "int8"} if "state_dtype: int8" in config else {}
    assert resolve(file.stem) == (find(name), options)


def test_other_names():
    for name, cls in {
        "SGD": torch.optim.SGD,
        "l-bfgs": torch.optim.LBFGS,
        "Adam_mini": adan_optim.AdamMini,
    }.items():
        assert find(name) is cls
    optimizer = build_optimizer(Model(), "adamw8bit", weight_decay=0.3)
    assert {group["state_dtype"] for group in optimizer.param_groups} == {"int8"}
    assert build_optimizer(Model(), "adamw8bit", state_dtype=None).param_groups[0]["state_dtype"] is None
    for no_name in (adan_optim.Adan, Model()):
        with pytest.raises(TypeError, match=r"^an optimizer's name is a string such as 'adan', not a \w+$"):
            build_optimizer(Model(), no_name)


def test_by_import_path():
    assert type(build_optimizer(Model(), "torch.optim.SGD", lr=0.1, momentum=0.9)) is torch.optim.SGD
    assert type(build_optimizer(Model(), "timm.optim.Lamb", lr=0.1)).__name__ == "Lamb"
    assert type(build_optimizer([torch.ones(1, requires_grad=True)], "adan_optim.Adan")) is adan_optim.Adan


def test_by_config():
    config = {"name": "adan", "lr": 0.1, "weight_decay": 0.3, "betas": [0.9, 0.8, 0.95], "layer_decay": 0.5}
    optimizer = build_optimizer(Model(), config, lr=0.2)
    assert config["lr"] == 0.1
    assert max(group["lr"] for group in optimizer.param_groups) == 0.2
    assert len({group["lr"] for group in optimizer.param_groups}) == 5  # token, three blocks, norm
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.8, 0.95)
    for bad in ({}, {"lr": 1.0}, {"name": None}):
        with pytest.raises(ValueError, match=r"name.* adan, adamw"):
            build_optimizer(Model(), bad)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("adn", "unknown optimizer 'adn': did you mean 'adan'?"),
        ("AdamWW", "did you mean 'adamw'?"),
        ("zzz", "unknown optimizer 'zzz': there are adan, adamw"),
        ("torch.optim.Nope", "unknown optimizer 'torch.optim.Nope'"),
        ("no.such.module", "unknown optimizer 'no.such.module'.*No module named 'no'"),
        ("torch.nn.Linear", "'torch.nn.Linear' is not a torch.optim.Optimizer"),
        ("torch.optim.lr_scheduler", "is not a torch.optim.Optimizer"),
    ],
)
def test_unknown_names(name, match):
    with pytest.raises(ValueError, match=match) as caught:
        build_optimizer(Model(), name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "match"),
    [
        ("adan", "weigth_decay", "Adan has no option 'weigth_decay': did you mean 'weight_decay'"),
        ("torch.optim.SGD", "momentun", "SGD has no option 'momentun': did you mean 'momentum'"),
        ("adan", "qqqq", "Adan has no option 'qqqq': it has lr, betas"),
    ],
)
def test_unknown_options(name, option, match):
    with pytest.raises(TypeError, match=match):
        build_optimizer(Model(), name, **{option: 0.1})


def test_nothing_to_optimize():
    for nothing, match in (
        ([], "no parameters to optimize"),
        (Model().requires_grad_(False), "no trainable parameters"),
    ):
        with pytest.raises(ValueError, match=match):
            build_optimizer(nothing, "adan")


# ---- what works here


def table(capsys):
    adan_optim.available()
    *lines, others = capsys.readouterr().out.splitlines()
    assert re.match("Tensors on MPS, XPU or ROCm take the path foreach", others)
    return lines


def test_embeddings_can_keep_larger_states():
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 64))
    optimizer = build_optimizer(model, "adan", state_dtype="int8", embedding_state_dtype="float32")
    model(torch.arange(9)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state[model[1].weight]["exp_avg"].dtype == torch.uint8
    assert [group["name"] for group in optimizer.param_groups] == ["decay_embedding", "decay", "no_decay"]
    with pytest.raises(TypeError, match="SGD has no option 'state_dtype'"):
        build_optimizer(model, "torch.optim.SGD", lr=0.1, embedding_state_dtype="float32")


def test_available(capsys):
    if reason := native.load()[1]:
        pytest.skip(reason)
    lines = table(capsys)
    assert lines[0].split() == ["optimizer", "path", "device", "available"]
    rows = [line.split(maxsplit=3) for line in lines[1:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (name, path, device)
        for name, card in adan_optim.CARDS.items()
        for path in card.paths
        for device in (map(str.upper, card.fused_devices) if path == "fused" else ["any"])
    ]
    assert all(row[3] == (cuda.why_not() or "yes") for row in rows if row[2] == "CUDA")
    assert all(row[3].startswith("yes") for row in rows if row[2] != "CUDA")
    assert f"yes ({native.load()[0].instruction_set})" in lines[1]


def test_available_without_kernels(capsys, monkeypatch):
    monkeypatch.setattr(native, "load", lambda: (None, "hidden by a test"))
    rows = [line.split(maxsplit=3) for line in table(capsys)[1:]]
    for name, path, device, answer in rows:
        if device != "CUDA":
            assert answer == ("hidden by a test" if path == "fused" else "yes"), name


def test_a_library_older_than_a_rule_says_so(monkeypatch):
    if reason := native.load()[1]:
        pytest.skip(reason)
    monkeypatch.setattr(
        adan_optim.Lion, "card", replace(adan_optim.Lion.card, rules=(FusedRule("newer", ()),))
    )
    reason = "built without the rule 'newer' .* install this package again"
    with pytest.raises(ValueError, match=reason):
        adan_optim.Lion(Model().parameters(), fused=True)
    assert adan_optim.Lion(Model().parameters()).path == "foreach"
    assert re.search(
        reason, why_not_fused(adan_optim.Lion.card, torch.zeros(3), Storage(None, "nearest", False))
    )


def test_a_missing_library_gives_its_reason(monkeypatch, tmp_path):
    """Not built, and damaged."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "engine" / "native.py"))
    library, reason = native.load.__wrapped__()
    assert library is None
    assert "install a C++ compiler" in reason
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    library, reason = native.load.__wrapped__()
    assert library is None
    assert "_cpu.so could not be loaded" in reason


@pytest.fixture
def hidden(monkeypatch):
    """No kernels on this machine."""
    monkeypatch.setattr(native, "load", lambda: (None, "the CPU kernels are hidden"))
    available.warn_of_slow_path.cache_clear()
    yield
    available.warn_of_slow_path.cache_clear()


def test_a_slow_path_is_said_once_at_the_users_line(hidden):
    def step(**options):
        p = torch.nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        adan_optim.AdamW([p], **options).step()

    step(foreach=True)
    message = "AdamW takes the path foreach on cpu, .*: the CPU kernels are hidden"
    with pytest.warns(adan_optim.SlowPathWarning, match=message) as found:
        step()
    step()  # a second warning would be an error
    assert [warning.filename for warning in found] == [__file__]


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cuda, "why_not", lambda index=None: "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cuda.why_not_kept() == ""
    (tmp_path / "adan-optim").touch()
    adan_optim.available()
    message = f"yes (every process compiles its kernels again: {tmp_path / 'adan-optim'} cannot be written)"
    assert message in " ".join(capsys.readouterr().out.split())  # the table wraps it


def test_command():
    out = subprocess.run(
        [sys.executable, "-m", "adan_optim"], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in out.splitlines()[1:-1]} == set(adan_optim.CARDS)


def test_path_in_use_of_torchs_own():
    p = [torch.ones(1, requires_grad=True)]
    assert adan_optim.path_in_use(torch.optim.AdamW(p, fused=True)) == "torch.optim.adamw.AdamW (fused)"
    assert adan_optim.path_in_use(torch.optim.SGD(p, lr=0.1)) == "torch.optim.sgd.SGD"
