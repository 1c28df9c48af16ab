"""The tools whose settings have names of their own, as the documentation calls them."""

from __future__ import annotations

HF = "transformers, TRL, LLaMA-Factory"
GLM = "ChatGLM"  # the P-Tuning scripts of ChatGLM-6B and ChatGLM2-6B
GLM_HF = f"{GLM}, {HF}"
TUNE = "ChatGLM-Finetuning"  # the scripts that compare P-Tuning v2, Freeze and LoRA
FACTORY = "LLaMA-Factory"
AXOLOTL = "Axolotl"
TRL = "TRL"
ALL = f"{HF}, {AXOLOTL}"
