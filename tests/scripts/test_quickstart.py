"""scripts/quickstart.py: the notebook is that of the script, and it runs."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = runpy.run_path(str(ROOT / "scripts" / "quickstart.py"))


def test_the_notebook_is_that_of_the_script() -> None:
    notebook = nbformat.read(QUICKSTART["NOTEBOOK"], as_version=4)
    nbformat.validate(notebook)
    expected = [(cell.id, cell.cell_type, cell.source) for cell in QUICKSTART["made"]().cells]
    assert [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells] == expected, (
        "examples/quickstart.py has changed: run `make quickstart`"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]


@pytest.mark.recipe
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without errors and warnings; and what its texts say of the numbers is so."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT}/optim")
    cells = QUICKSTART["executed"](QUICKSTART["made"]()).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert {output.get("name", "") for output in outputs} == {"stdout", ""}
    text = "".join(output.get("text", "") for output in outputs)
    adamw, adan = (
        {float(lr): float(loss) for lr, loss in found}
        for found in (re.findall(rf"{name} lr (\S+): loss (\S+)", text) for name in ("adamw", "adan"))
    )
    for found in (adamw, adan):  # the best is not at the border of the search
        assert min(found, key=found.__getitem__) not in (min(found), max(found))
    assert min(adan, key=adan.__getitem__) > sorted(adan)[1]  # the second is the predicted one
    states = {name: float(size) for name, size in re.findall(r"(\w+) +(\S+) bytes per parameter", text)}
    assert states["float32"] == pytest.approx(16, abs=0.01)
    assert 4 < states["int8"] < 4.6
    assert "\nTrue\n" in f"\n{text}"
    assert "not finite: nothing in any sample" in text
