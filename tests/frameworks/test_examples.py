"""The examples run, with every optimizer, and arrive where PyTorch alone does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adan_optim

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = list(adan_optim.OPTIMIZERS)
UNCLIPPED = ("max_grad_norm=0.5", "max_grad_norm=0.0")  # changes of their text
HALFWAY = ("STEPS = 8", "STEPS = 4")
# Frameworks that no extra of this package installs.
OPTIONAL = {
    "deepspeed_zero.py": "deepspeed",
    "lightning_module.py": "lightning",
    "llama_factory.py": "llamafactory",
    "torchtitan_container.py": "torchtitan",
}
# Frameworks that take a class, and make groups without the model.
BY_CLASS = (
    "hf_trainer.py",
    "timm_factory.py",
    "torchtitan_container.py",
    "zero_redundancy.py",
    "zero_states.py",
)
WITHOUT_CLIPPING = ("in_backward.py", "fsdp2_in_backward.py", "hf_trainer_optimizers.py", "zero_states.py")
# DeepSpeed flattens all parameters into one before it shards them: for optimizers that update every element
# by itself.
# With a part of them on each process, steps must not depend on the others either; nor in the backward pass.
INDEPENDENT = [name for name in NAMES if adan_optim.OPTIMIZERS[name].independent]
BY_ELEMENT = [name for name in INDEPENDENT if adan_optim.CARDS[name].elementwise]


def need(script: str) -> str:
    """How warnings are treated: the frameworks that are not ours to install have some of their own."""
    module = OPTIONAL.get(script)
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    return "ignore" if module else "error"


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-8) -> None:
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def each(*scripts: str):
    return pytest.mark.parametrize("script", scripts, ids=lambda script: script.removesuffix(".py"))


each_name = pytest.mark.parametrize("name", NAMES)


def skip_unless_independent(script: str, name: str) -> None:
    if name not in INDEPENDENT and script.startswith(("in_backward", "fsdp2_in_backward", "zero_")):
        pytest.skip(f"{name} needs all parameters in each step")


@pytest.fixture
def expected(plain):
    """What PyTorch alone arrives at with the groups and the clipping of a script."""

    def parameters(script, name):
        changes = [UNCLIPPED] if script in WITHOUT_CLIPPING else []
        return plain(name, *changes, by_class=script in BY_CLASS)

    return parameters


@pytest.mark.per_family
@each_name
@each("compiled.py", "timm_factory.py", "in_backward.py", "hf_trainer_optimizers.py")
def test_in_one_process(server, expected, name, script):
    skip_unless_independent(script, name)
    [parameters] = server.run(script, name, warnings=need(script))
    assert_same(parameters, expected(script, name))


@pytest.mark.per_family
@each_name
@each("plain.py", "hf_accelerate.py", "hf_trainer.py", "lightning_module.py")
def test_goes_on_from_a_checkpoint(server, expected, name, script, tmp_path):
    """And neither the model nor the optimizer remembers that it was interrupted."""
    [halfway] = server.run(script, name, HALFWAY, folder=tmp_path, warnings=need(script))
    assert any(tmp_path.rglob("runs/*"))
    [parameters] = server.run(script, name, folder=tmp_path, warnings=need(script))
    assert_same(parameters, expected(script, name))
    assert not torch.equal(parameters[0], halfway[0])
    [again] = server.run(script, name, folder=tmp_path, warnings=need(script))
    assert_same(again, parameters)


@pytest.mark.per_family
@each_name
@each("ddp.py", "zero_redundancy.py", "zero_states.py", "fsdp2_in_backward.py", "torchtitan_container.py")
def test_in_two_processes(server, expected, name, script):
    """Which have the same bits afterwards, and those of one process except for rounding."""
    skip_unless_independent(script, name)
    first, second = server.run(script, name, world=2, warnings=need(script))
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    assert_same(first, expected(script, name))


@pytest.mark.per_family
@each_name
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_fsdp2_checkpoint_of_another_number_of_processes(server, plain, name, before, after, tmp_path):
    halfway = server.run("fsdp2.py", name, HALFWAY, folder=tmp_path, world=before)
    assert_same(halfway[0], plain(name, HALFWAY))
    for parameters in server.run("fsdp2.py", name, folder=tmp_path, world=after):
        assert_same(parameters, plain(name))


@pytest.mark.parametrize("name", BY_ELEMENT)
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed(server, plain, name, stage):
    """DeepSpeed keeps the parameters that are stepped in float32."""
    script, change = "deepspeed_zero.py", ("STAGE = 2", f"STAGE = {stage}")
    for parameters in server.run(script, name, change, world=2, warnings=need(script)):
        assert_same(parameters, plain(name), tolerance=1e-5)


@pytest.mark.per_family
@each_name
def test_llama_factory(server, name, tmp_path):
    """Its checkpoint has the states of our optimizer, after all steps."""
    server.run("llama_factory.py", name, folder=tmp_path, warnings=need("llama_factory.py"))
    (saved,) = tmp_path.rglob("optimizer.pt")
    states = torch.load(saved)["state"].values()
    assert len(states) > 10
    assert all(
        int(state["step"]) == 8 and set(state) >= set(adan_optim.CARDS[name].states) for state in states
    )


@pytest.mark.slow
def test_torchrun():
    """The command of an example, as it stands there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = str(EXAMPLES / "ddp.py")
    run = subprocess.run([*command, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(r"loss \d\.\d{9}\n", run.stdout)


# ---- the page


def sections() -> dict[str, str]:
    """The text of docs/frameworks.md by the example that a section is about."""
    text = (ROOT / "docs" / "frameworks.md").read_text()
    return {
        script: section
        for section in text.split("\n## ")
        for script in re.findall(r"\A.*\(\.\./examples/(\w+\.py)\)", section)
    }


EXAMPLES_SHOWN = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "quickstart.py")


@pytest.mark.parametrize("script", EXAMPLES_SHOWN)
def test_the_page_shows_what_the_example_does(script):
    section = sections()[script]
    code = (EXAMPLES / script).read_text()
    assert len(code.splitlines()) <= 65
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert block in code


@pytest.mark.parametrize("script", EXAMPLES_SHOWN)
def test_each_example_stands_alone(script):
    """It imports packages only; and all have the same model and batches, word for word."""
    code = (EXAMPLES / script).read_text()
    imported = re.findall(r"^(?:from|import) (\w+)", code, flags=re.MULTILINE)
    assert not {*imported} & {path.stem for path in EXAMPLES.iterdir()}
    if script != "llama_factory.py":  # a language model
        task = re.search(
            r"torch.manual_seed.*?keepdim=True\)\n", (EXAMPLES / "plain.py").read_text(), re.DOTALL
        )
        assert task
        assert task[0] in code
