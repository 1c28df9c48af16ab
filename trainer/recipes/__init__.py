"""Published data sets by name. A new one is a function and its Recipe in the file of its kind, and a line here.

Knows nothing of configurations, tokens or training.
"""

from __future__ import annotations

from trainer.recipes.extraction import CHATGLM_SPO, RESUME_NER, SNIPS, WNUT17
from trainer.recipes.generation import ADVERTISEGEN, E2E_NLG, TOOLCALL
from trainer.recipes.labels import BANKING77, CLINC150, EMOTION
from trainer.recipes.recipe import Recipe, Row, Split
from trainer.recipes.solutions import GEOGRAPHY, GEOGRAPHY_QUERY, GSM8K, HUMANEVAL, SQLQA

__all__ = ["RECIPES", "Recipe", "Row", "Split"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        SNIPS, BANKING77, CLINC150, EMOTION, WNUT17, RESUME_NER, SQLQA, GEOGRAPHY, GEOGRAPHY_QUERY, CHATGLM_SPO,
        ADVERTISEGEN, E2E_NLG, GSM8K, HUMANEVAL, TOOLCALL,
    )
}  # fmt: skip
