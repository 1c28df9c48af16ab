"""Published data sets by name. A new one is a small file with its Recipe, and a line here."""

from __future__ import annotations

from trainer.data.recipes.advertisegen import ADVERTISEGEN
from trainer.data.recipes.banking77 import BANKING77
from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.chatglm_spo import CHATGLM_SPO
from trainer.data.recipes.clinc150 import CLINC150
from trainer.data.recipes.e2e_nlg import E2E_NLG
from trainer.data.recipes.emotion import EMOTION
from trainer.data.recipes.geography import GEOGRAPHY, GEOGRAPHY_QUERY
from trainer.data.recipes.gsm8k import GSM8K
from trainer.data.recipes.humaneval import HUMANEVAL
from trainer.data.recipes.resume_ner import RESUME_NER
from trainer.data.recipes.snips import SNIPS
from trainer.data.recipes.sqlqa import SQLQA
from trainer.data.recipes.toolcall import TOOLCALL
from trainer.data.recipes.wnut17 import WNUT17

__all__ = ["RECIPES", "Recipe", "Row", "Split"]

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        SNIPS, BANKING77, CLINC150, EMOTION, WNUT17, RESUME_NER, SQLQA, GEOGRAPHY, GEOGRAPHY_QUERY, CHATGLM_SPO,
        ADVERTISEGEN, E2E_NLG, GSM8K, HUMANEVAL, TOOLCALL,
    )
}  # fmt: skip
