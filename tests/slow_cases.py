"""Tests of which CI runs some cases, and `make test-slow` the others, which show the same once more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

# Of these every so manieth case is run, from the first on; of those with a 0 none is.
EVERY = {
    "adapters/batch/test_grouped.py::test_one_op": 5,
    "adapters/kinds/lora/test_lora_variants.py::test_variant": 3,
    "adapters/kinds/replacement/test_modules_to_save.py::test_every_option_on_every_base": 5,
    "adapters/kinds/test_against_peft.py::test_lora": 3,
    "adapters/kinds/test_bad_packages.py::test_a_file_cut_short_or_lengthened": 5,
    "adapters/kinds/test_bad_packages.py::test_a_missing_tensor": 5,
    "adapters/kinds/test_bad_packages.py::test_a_tensor_too_many": 5,
    "adapters/kinds/test_bad_packages.py::test_another_shape": 5,
    "adapters/kinds/test_bad_packages.py::test_no_numbers": 5,
    "adapters/kinds/test_bad_packages.py::test_the_name_of_another_kind": 5,
    "bases/test_one_rule.py::test_training_and_serving_prepare_the_same_base": 5,
    "bases/test_quantization_saved.py::test_a_mixed_batch_equals_peft_over_the_original_quantized_alike": 3,
    "benchmarks/test_own_server.py::test_perplexity_is_that_of_transformers": 0,
    "hotkernels/test_attention.py::test_a_row_is_the_same_in_any_batch": 7,
    "hotkernels/test_attention.py::test_every_shape_and_type_is_its_twin": 3,
    "loadtests/soak/test_soak.py::test_a_wrong_answer_is_told": 0,
    "loadtests/test_cli.py::test_a_bad_flag_exits_2_and_names_it": 4,
    "loadtests/test_compare.py::test_runs_of_the_command_are_compared_on_a_page": 0,
    "server/api/test_openapi_conformance.py::test_a_few_requests_of_some_kinds": 2,
    "server/catalog/test_canary.py::test_a_split_outlives_the_server_and_another_one_sees_it": 2,
    "server/catalog/test_catalog.py::test_ten_thousand_names_are_loaded_at_once": 2,
    "server/catalog/test_lifecycle_candidates.py::test_every_change_at_random_under_traffic": 0,
    "server/catalog/test_polling.py::test_a_restart_serves_what_was_served": 2,
    "server/console/test_adapters.py::test_what_somebody_else_changed_meanwhile_is_not_changed": 0,
    "server/engine/ipc/test_compiler.py::test_the_compiler_is_there_when_it_is_used_and_not_before": 0,
    "server/engine/ipc/test_process_client.py::test_an_adapter_unloaded_while_down_stays_away": 0,
    "server/engine/ipc/test_process_client.py::test_an_adapter_whose_files_vanished_does_not_keep_the_engine_down": 0,
    "server/engine/ipc/test_process_client.py::test_closing_ends_what_waits_for_an_engine": 0,
    "server/engine/ipc/test_process_client.py::test_keeps_trying_after_it_has_given_up_hurrying": 0,
    "server/engine/ipc/test_process_client.py::test_start_failures_speak_plainly": 0,
    "server/engine/sampling/test_masks.py::test_draws_by_the_probabilities_of_what_is_allowed": 3,
    "server/engine/sampling/test_sampler.py::test_draws_follow_the_distribution": 3,
    "server/engine/sampling/test_sampler.py::test_top_p_keeps_what_its_definition_keeps": 4,
    "server/engine/test_engine_every_kind.py::test_mixed_and_preempted": 0,
    "server/engine/test_speculation.py::test_any_requests_in_any_mix": 5,
    "server/model/families/test_families.py::test_family": 3,
    "server/model/families/test_patched.py::test_bfloat16": 3,
    "server/model/families/test_per_expert.py::test_swapped_factors": 4,
    "server/model/families/test_windows.py::test_prompts_longer_than_the_window": 3,
    "server/model/lean/test_exact_kinds.py::test_every_kind": 4,
    "server/model/lean/test_lean_forward.py::test_every_shape_gives_the_models_own_logits": 3,
    "server/model/seq2seq/test_encoder_decoder.py::test_every_kind_alone": 4,
    "server/model/seq2seq/test_encoder_decoder.py::test_quantized_bases": 5,
    "server/model/test_model_runner.py::test_every_kind_alone": 5,
    "server/model/test_model_runner_dtypes.py::test_types_of_the_cache": 5,
    "server/test_freezes.py::test_nobody_notices_a_request": 6,
    "server/test_serving.py::test_a_second_signal_ends_what_runs_and_says_so": 0,
    "server/test_serving.py::test_a_signal_before_there_is_an_engine": 2,
    "server/test_serving.py::test_a_signal_while_the_base_is_loading": 2,
    "server/test_serving.py::test_failing_to_start_is_one_line": 5,
    "server/test_serving.py::test_what_an_earlier_server_served_is_served": 0,
    "server/test_serving_faults.py::test_descriptors_run_out_and_come_back": 0,
    "server/test_serving_faults.py::test_setting_the_clock_disturbs_nothing": 0,
    "server/test_two_servers.py::test_each_sees_what_the_other_changes": 2,
    "server/test_unix_socket.py::test_what_is_printed_can_be_tried": 0,
    "server/text/test_template_reader.py::test_templates_in_use_are_read_as_they_are_rendered": 3,
    "trainer/commands/test_eval.py::test_an_interrupted_eval_stops_its_server": 0,
    "trainer/commands/test_eval.py::test_mistakes_get_one_line_and_exit_code_1": 3,
    "trainer/commands/test_plan.py::test_a_run_in_text_and_the_package_has_the_size_that_was_said": 0,
    "trainer/commands/test_plan.py::test_a_shape_s_methods_with_their_counts": 0,
    "trainer/distributed/test_processes.py::test_two_processes_learn_to_read_as_one": 0,
    "trainer/evaluation/test_bootstrap.py::test_intervals_hold_the_truth_about_95_times_in_100": 0,
    "trainer/evaluation/test_bootstrap.py::test_many_rows_are_drawn_in_rounds_that_fit_memory": 0,
    "trainer/evaluation/test_metrics_recipes.py::test_the_metrics_of_a_recipe_tell_right_answers_from_none": 4,
    "trainer/export/test_merge.py::test_added_tokens_are_merged": 4,
    "trainer/export/test_merge.py::test_adapters_that_peft_saved_are_merged": 4,
    "trainer/export/test_merge.py::test_the_merged_base_answers_as_the_adapter": 5,
    "trainer/export/test_merge.py::test_what_is_no_change_of_weights_is_refused_with_the_reason": 3,
    "trainer/export/test_result_served.py::test_and_over_a_quantized_base": 4,
    "trainer/export/test_result_served.py::test_the_server_replays_what_the_trainer_recorded": 4,
    "trainer/loop/test_failures.py::test_a_later_checkpoint_that_does_not_fit_leaves_the_earlier_one_to_resume_from": 0,
    "trainer/loop/test_failures.py::test_metrics_that_do_not_fit_are_said_so": 0,
    "trainer/loop/test_start.py::test_added_tokens_keep_their_rows": 2,
    "trainer/loop/test_start.py::test_preferences_are_compared_with_what_the_run_starts_from": 4,
    "trainer/loop/test_start.py::test_the_model_is_the_one_that_was_trained": 4,
    "trainer/loop/test_trainer_optimizers.py::test_every_optimizer_learns_and_resumes_exactly": 4,
    "trainer/methods/test_adalora.py::test_a_checkpoint_from_between_two_allocations_is_exported_as_it_answers": 0,
    "trainer/plan/test_memory.py::test_the_peak_is_what_the_allocator_gives_out": 4,
    "trainer/pooling/test_run.py::test_a_classifier_is_what_transformers_and_peft_load": 4,
    "trainer/preference/test_run.py::test_supervised_training_imports_no_trl": 0,
    "trainer/preference/test_run.py::test_the_server_takes_the_package": 3,
    "trainer/test_run.py::test_a_resumed_run_is_equal_to_the_last_bit": 4,
    "trainer/test_run.py::test_gradient_checkpointing_changes_no_loss": 4,
    "trainer/test_run_seq2seq.py::test_it_learns_and_is_served_as_peft_computes_it": 4,
}


def mark_slow_cases(items: list[pytest.Item]) -> None:
    """Mark what ``EVERY`` leaves out. A case that is asked for alone is the first of its test."""
    seen: Counter[str] = Counter()
    here = Path(__file__).parent
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("slow"):
            continue
        test = f"{item.path.relative_to(here).as_posix()}::{item.originalname}"
        if (every := EVERY.get(test)) is not None:
            if not every or seen[test] % every:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1
