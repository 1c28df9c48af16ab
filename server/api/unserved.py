"""Fields that clients of other servers send and that are not served here, each with its reason.

To ignore one would answer a request that was not made: an output that was to be JSON, of another adapter, or shorter.
What asks for nothing (bookkeeping, speed) stands in no table, and like fields that nobody knows it is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

_NAME_IT = "name the adapter in `model`; GET /v1/models lists what is served"
_NO_FORM = "use `response_format` or `structured_outputs`"
_BY_REASON = {
    _NAME_IT: """
        lora lora_request lora_name lora_id lora_int_id lora_adapter lora_adapters lora_weights loras adapter
        adapter_name adapter_names adapters_name""",
    "adapters are uploaded to this server first; name one of GET /v1/models": "adapter_source adapter_revision",
    "give `adapters`, a list of {name, weight}": "merged_adapters adapter_weights",
    "use `response_format`": """
        structured_output response_schema json_object format output_format guided_decoding_params""",
    "lazy grammars are not served; use `structured_outputs`: {`structural_tag`: ...}": """
        grammar_lazy grammar_triggers""",
    "use `grammar`": "grammar_string",
    "a grammar begins at `root` (GBNF) or `start` (Lark)": "grammar_root",
    "use `structured_outputs`: {`whitespace_pattern`: ...}": "whitespace_pattern",
    "this server calls no tools itself; describe them in `tools`, and send back what they say": """
        tool_prompt tool_resources plugins mcp_servers""",
    "this server has no search; put what was found into the prompt": """
        web_search_options web_search search_parameters enable_search data_sources""",
    "documents are not rendered; put their text into the prompt": "documents rag_documents citation_options",
    "only text is read and written": """
        audio modalities image images image_data image_url video_data audio_data multi_modal_data multi_modal_uuids
        mm_processor_kwargs media_io_kwargs images_config max_dynamic_patch min_dynamic_patch use_audio_in_video""",
    "prompts are text or token ids": "prompt_embeds input_embeds inputs_embeds input_ids prompt_token_ids",
    "templates come only from the operator of the server": "chat_template template",
    "put it into `messages`": "system system_prompt safe_prompt guideline",
    "put its fields beside `model`": "extra_body options parameters sampling_params model_kwargs generation_config",
    "use `reasoning_effort`": "reasoning",
    "use `separate_reasoning`": "reasoning_in_content reasoning_split",
    "thoughts are not counted or cut": """
        thinking_token_budget thinking_budget reasoning_budget reasoning_budget_tokens thinking_forced_open""",
    "use `use_beam_search` with `best_of`": "num_beams beam_width",
    "use `n`": "num_return_sequences n_cmpl",
    "beams are searched without it; ask for `n` outputs and choose": """
        beam_search_diversity_rate num_beam_groups diversity_penalty penalty_alpha""",
    "use `max_tokens`": "max_new_tokens max_length n_predict num_predict max_tokens_to_sample max_output_tokens",
    "use `min_tokens`": "min_new_tokens min_length",
    "use `stop`": "stop_sequences stop_words stop_strings end_strings stopping_strings",
    "patterns do not end an output; use `stop`": "stop_regex",
    "use `include_stop_str_in_output`": "no_stop_trim",
    "use `stop_token_ids`": "end_id stop_token_id",
    "use `ignore_eos`": "ignore_eos_token ban_eos_token",
    "use `seed`": "random_seed sampling_seed sampler_seed",
    "use `temperature`, 0 for the likeliest tokens": "do_sample",
    "use `repetition_penalty`": "repeat_penalty rep_pen",
    "`repetition_penalty` looks at the whole prompt and output": """
        repeat_last_n repetition_penalty_range encoder_repetition_penalty prompt_ignore_length""",
    "use `bad_words`, or `logit_bias` with -100": """
        bad_words_ids banned_tokens banned_strings custom_token_bans suppress_tokens begin_suppress_tokens""",
    "use `logit_bias`": "sequence_bias embedding_bias force_words_ids force_words forced_bos_token_id",
    "use `logprobs`": "n_probs top_n_tokens return_k_alternatives return_logprob top_logprobs_num",
    "use `logprob_token_ids`": "token_ids_logprob",
    "use `logprobs`, or `prompt_logprobs`": "logprob_start_len",
    "use `truncate_prompt_tokens`": """
        truncate truncation max_input_length prompt_truncate_len context_length_exceeded_behavior""",
    "use `truncate_prompt_tokens` with `truncation_side`": "n_keep n_discard",
    "use `echo` of /v1/completions": "return_full_text",
    "use `return_token_ids`": "return_prompt_token_ids",
    "the answer has OpenAI's form, without more": """
        return_tokens return_prompt_text
        return_token_offsets return_hidden_states return_routed_experts return_meta_info return_cached_tokens_details
        return_context_logits return_generation_logits return_encoder_output return_perf_metrics return_progress
        response_fields details decoder_input_details post_sampling_probs timings_per_token detokenize raw_output""",
    "this way of sampling is not served; use `temperature`, `top_k`, `top_p` and `min_p`": """
        typical_p typical tfs tfs_z top_a top_h top_n_sigma nsigma epsilon_cutoff eta_cutoff smoothing_factor
        smoothing_curve dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers dry_range
        mirostat mirostat_mode mirostat_target mirostat_lr mirostat_tau mirostat_eta xtc_probability xtc_threshold
        dynatemp_range dynatemp_exponent dynatemp_low dynatemp_high dynamic_temperature adaptive_target adaptive_decay
        samplers sampler_priority sampler_order min_keep top_p_min top_p_decay no_repeat_ngram_size repetition_detection
        guidance_scale cfg_scale negative_prompt""",
    "requests bring no code or parameters of their own": """
        logits_processors logits_processor custom_logit_processor custom_params vllm_xargs extra_args""",
    "outputs are not marked": "watermark watermarking",
    "nothing is moderated here": "moderation safety_model",
    "what comes first is set by the operator, for an adapter": "priority",
    "this server computes prompts itself, and its engines are not chosen by a request": """
        kv_transfer_params ec_transfer_params disaggregated_params bootstrap_host bootstrap_port bootstrap_room
        data_parallel_rank routed_dp_rank disagg_prefill_dp_rank id_slot slot_id""",
    "give `timeout`, in seconds": "t_max_predict_ms",
}
UNSERVED: Mapping[str, str] = MappingProxyType(
    {name: reason for reason, names in _BY_REASON.items() for name in names.split()}
)
"""Field to reason, on every endpoint that reads a prompt."""

_OF_CHATS = "a prompt is not a conversation; use /v1/chat/completions"
UNSERVED_IN_TEXT: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            *("tools", "functions", "tool_choice", "function_call", "reasoning_effort", "thinking", "think"),
            *("enable_thinking", "include_reasoning", "separate_reasoning", "reasoning_format"),
        ),
        _OF_CHATS,
    )
)
"""What is served where there is a conversation alone."""

_OTHER_NAME = re.compile("use `([a-z_]+)`")
_OURS = {name: ours[1] for name, reason in UNSERVED.items() if (ours := _OTHER_NAME.fullmatch(reason))}
"""Others' names to ours: clients of several servers send both."""

UNSERVED_WORDS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("lora", "loras", "adapter", "adapters", "peft"), _NAME_IT)
    | dict.fromkeys(("guided", "grammar", "ebnf", "regex"), _NO_FORM)
)
"""Word in the name of a field to reason: servers have many names for these, and new ones come."""

_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_MAX_NAME_CHARS = 64
_MAX_NAMES = 256  # unknown fields of a body; no client sends more, and this must not take long

_OFF: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("max_new_tokens", "max_length", "n_predict", "num_predict", "max_tokens_to_sample"), ()),
    "max_output_tokens": (),
    "web_search_options": (),  # {} asks for a search
    "do_sample": (True,),
    "detokenize": (True,),
    "modalities": (["text"],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "think": (False, "none"),
    "thinking": (False, {"type": "disabled"}),
    "include_reasoning": (True,),
    "reasoning_budget": (-1,),
    "reasoning_budget_tokens": (-1,),
    "thinking_token_budget": (-1,),
    "thinking_budget": (-1,),
    "truncation": (False, "disabled", "do_not_truncate"),
    "context_length_exceeded_behavior": ("error",),
    "num_beams": (1,),
    "beam_width": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "n_cmpl": (1,),
    "repeat_penalty": (1,),
    "rep_pen": (1,),
    "encoder_repetition_penalty": (1,),
    "repeat_last_n": (0, 64, -1),
    "typical_p": (1,),
    "typical": (1,),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_n_sigma": (0, -1),
    "nsigma": (0, -1),
    "smoothing_curve": (1,),
    "guidance_scale": (1,),
    "cfg_scale": (1,),
    "adaptive_target": (-1,),
    "adaptive_decay": (0, 0.9),
    "id_slot": (-1,),
    "slot_id": (-1,),
    "end_id": (-1,),
    "logprob_start_len": (-1,),
    # What does nothing while its switch is off: the value that clients send then.
    "dry_base": (0, 1.75),
    "dry_allowed_length": (0, 2),
    "dry_penalty_last_n": (0, -1),
    "dry_sequence_breakers": ([], ["\n", ":", '"', "*"]),
    "mirostat_tau": (0, 5),
    "mirostat_eta": (0, 0.1),
    "xtc_threshold": (0, 0.1, 0.5),
    "dynatemp_exponent": (0, 1),
    "dynatemp_low": (0, 1),
    "dynatemp_high": (0, 1),
    "top_p_decay": (0, 1),
}
_EMPTY: tuple[object, ...] = (False, [], {}, "")  # 0 equals False
_SWITCHES = {"tools": "tool_choice", "functions": "function_call"}


def with_words(names: Collection[str], reasons: Mapping[str, str]) -> dict[str, str]:
    """Those of ``names`` that have a word of ``reasons`` in them (``adapterName``, ``lora_name``), with its reason."""
    found: dict[str, str] = {}
    for name in names if len(names) <= _MAX_NAMES else ():
        if len(name) <= _MAX_NAME_CHARS and name.isascii():
            known = (reasons[word] for word in map(str.lower, _WORD.findall(name)) if word in reasons)
            found.update((name, reason) for reason in known)
    return found


def find_unserved(body: Mapping[str, Any], reasons: Mapping[str, str]) -> str | None:
    """The first field of ``body``, by name, that stands in ``reasons`` and asks for something."""
    return next((name for name in sorted(reasons.keys() & body.keys()) if not _is_off(name, body)), None)


def _is_off(name: str, body: Mapping[str, Any]) -> bool:
    if body[name] is None or body[name] in _OFF.get(name, _EMPTY):
        return True
    if (ours := _OURS.get(name)) is not None and body.get(ours) == body[name]:
        return True
    if name == "audio":  # how it sounds, beside what is to be made
        return body.get("modalities") == ["text"]
    return name in _SWITCHES and "none" in (body.get("tool_choice"), body.get(_SWITCHES[name]))
