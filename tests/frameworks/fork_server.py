"""Runs scripts as `python` or `torchrun` would, in processes that need not import everything again.

Reads one JSON request per line: {script, folder, world, port, warnings}. What the script imports
is imported here; then `world` processes are forked, each of which runs it as `__main__` in the folder and
leaves beside the script what it printed (RANK.log) and the parameters of its `model`, whole (RANK.pt).
Answers with their exit statuses. Only imports happen before the fork, so that a child starts as clean as a
new process.
"""

import ast
import contextlib
import importlib
import json
import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path

import torch

PROGRAMS = Path(__file__).resolve().with_name("programs")


def import_what_it_imports(script: Path) -> None:
    """Except what is not installed, which the script will say."""
    code = script.read_text()
    if "torch.compile(" in code:
        torch.compiler.list_backends()  # imports them
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for name in names:
            with contextlib.suppress(ImportError):
                found = importlib.import_module(module or name)
                getattr(found, name, None)  # packages that import their modules when they are used


def run(request: dict, rank: int) -> int:
    """What a child does; its exit status."""
    script = Path(request["script"])
    log = os.open(script.with_name(f"{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request["port"]:
        world = str(request["world"])
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    warnings.simplefilter(request["warnings"])
    sys.argv = [str(script)]
    os.chdir(request["folder"])
    torch.distributed.destroy_process_group = lambda: None  # sharded parameters are gathered after it
    try:
        model = runpy.run_path(str(script), run_name="__main__").get("model")
        parameters = [] if model is None else model.parameters()
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
        torch.save([p.detach() for p in whole], script.with_name(f"{rank}.pt"))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


sys.path.insert(0, str(PROGRAMS))  # for what those share
for line in sys.stdin:
    request = json.loads(line)
    import_what_it_imports(Path(request["script"]))
    children = []
    for rank in range(request["world"]):
        child = os.fork()
        if child == 0:
            os._exit(run(request, rank))
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
os._exit(0)  # there is nothing to clean up in all those modules
