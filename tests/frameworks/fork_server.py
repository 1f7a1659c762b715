"""Runs scripts as `torchrun` would, in processes that need not import everything again.

Reads one JSON request per line: {script, arguments, world, port, folder}. What the script imports is imported
here; then `world` processes are forked, each of which runs it as `__main__` and leaves in the folder what it
printed (RANK.log) and the parameters of the model that it reported on, whole (RANK.pt). Answers with their exit statuses.
Only imports happen before the fork, so that a child starts as clean as a new process.
"""

import ast
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def import_what_is_imported(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if not (script.parent / f"{module.split('.')[0]}.py").exists():
                try:
                    importlib.import_module(module)
                except ModuleNotFoundError:
                    parent, _, name = module.rpartition(".")  # not a module, or one that is not installed
                    if parent:
                        getattr(sys.modules.get(parent), name, None)


def run(request: dict, rank: int) -> int:
    log = os.open(f"{request['folder']}/{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    world = str(request["world"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    sys.argv = [request["script"], *request["arguments"]]
    sys.path.insert(0, str(Path(request["script"]).parent))
    import task
    import torch

    def keep_and_report(model: torch.nn.Module, report=task.report) -> None:
        parameters = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        torch.save([p.detach() for p in parameters], f"{request['folder']}/{rank}.pt")
        report(model)

    task.report = keep_and_report
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


for line in sys.stdin:
    request = json.loads(line)
    import_what_is_imported(Path(request["script"]))
    children = []
    for rank in range(request["world"]):
        child = os.fork()
        if child == 0:
            os._exit(run(request, rank))
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
