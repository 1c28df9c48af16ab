"""The names of what a run leaves in its output directory."""

from __future__ import annotations

CONFIG_FILE = "config.yaml"
SERVED_TEMPLATE = "chat_template.jinja"  # for --chat-template, where training had another than the base's
PACKAGE_DIR, BASE_DIR, REWARD_DIR = "adapter", "base", "reward_model"  # what a run ends in: one of them
