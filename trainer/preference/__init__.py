"""Training from preferences and rewards, with trl's trainers (extra ``preference``) and our models, data and exports.

trl is imported by ``trainers``, ``reward_model`` and ``grpo`` only, which are imported only when a run needs them.
"""
