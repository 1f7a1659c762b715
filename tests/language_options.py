"""Which files of the groups that all recipes share are the language recipes'."""

from pathlib import Path

from repro.text.config import TEXTS

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = {"roberta": "bert", "bert": "bert", "transformer_xl": "transformer_xl", "lstm": "lstm"}
RECIPES |= dict.fromkeys(("gpt2", "llama", "llama2", "llama3", "moe"), "llm")


def recipe(group: str, name: str) -> str | None:
    """Return the primary config that an option belongs to; None for those of vision."""
    if group == "data":
        return "bert" if name in TEXTS else None
    return next((RECIPES[family] for family in RECIPES if name.startswith(f"{family}_")), None)


def options(group: str, language: bool) -> list[str]:
    """Return the options of a group, the language recipes' or the others."""
    names = sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))
    return [name for name in names if (recipe(group, name) is not None) == language]
