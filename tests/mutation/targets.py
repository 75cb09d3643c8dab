"""The modules of the mutation test, each with the test files that are expected to notice its changes, the fastest first."""

from __future__ import annotations

_MODEL = ["tests/test_model.py", "tests/ops/test_attention.py", "tests/ops/test_packed_layout.py"]
_STEP = ["tests/training/test_train_step.py", "tests/training/test_trainer.py"]
_REPLIES = ["tests/generation/test_text.py", "tests/generation/test_decode.py", "tests/generation/test_cpu_model.py"]
_STOPS = ["tests/training/test_stop.py", "tests/training/test_trainer_stop.py"]
_STATE = ["tests/training/test_saved_state.py", "tests/checkpoints/test_tensor_files.py"]
_SAVES = ["tests/training/test_saving.py"]
_LOAD = ["tests/checkpoints/test_load.py", "tests/checkpoints/test_pairs.py", "tests/checkpoints/test_adapters.py"]
_FIND = ["tests/checkpoints/test_find.py", "tests/checkpoints/test_verify.py"]
_RUNS = ["tests/training/test_run_folder.py", "tests/training/test_fixed_settings.py", "tests/test_old_runs.py"]

TARGETS: dict[str, list[str]] = {
    "mini_chat_gpt/chat_format.py": ["tests/test_chat_format.py", "tests/test_sft_dataloader.py"],
    "mini_chat_gpt/checkpoints/adapters.py": ["tests/checkpoints/test_adapters.py", "tests/checkpoints/test_pairs.py"],
    "mini_chat_gpt/checkpoints/find.py": [*_FIND, *_LOAD],
    "mini_chat_gpt/checkpoints/load.py": _LOAD,
    "mini_chat_gpt/checkpoints/save.py": ["tests/checkpoints/test_save.py", *_FIND, *_STEP, *_SAVES],
    "mini_chat_gpt/checkpoints/tensor_files.py": [*_STATE, *_LOAD],
    "mini_chat_gpt/checkpoints/verify.py": _FIND,
    "mini_chat_gpt/common/files.py": ["tests/common/test_files.py", "tests/common/test_leftovers.py"],
    "mini_chat_gpt/data/batching.py": ["tests/data/test_batching.py", "tests/test_sft_dataloader.py", *_STEP],
    "mini_chat_gpt/data/chat_dataset.py": ["tests/data/test_chat_dataset.py", "tests/data/test_chat_files.py"],
    "mini_chat_gpt/data/chat_fitting.py": ["tests/data/test_chat_fitting.py"],
    "mini_chat_gpt/data/chat_split.py": ["tests/data/test_chat_split.py"],
    "mini_chat_gpt/data/step_loader.py": ["tests/data/test_step_loader.py", "tests/training/test_trainer.py"],
    "mini_chat_gpt/data/text_dataset.py": ["tests/data/test_text_dataset.py", "tests/data/test_token_file.py"],
    "mini_chat_gpt/generation/decode.py": _REPLIES,
    "mini_chat_gpt/generation/prompt_lookup.py": ["tests/generation/test_prompt_lookup.py", *_REPLIES],
    "mini_chat_gpt/generation/sampling.py": ["tests/generation/test_sampling.py", *_REPLIES],
    "mini_chat_gpt/generation/text.py": [*_REPLIES, "tests/generation/test_mixed_precision.py"],
    "mini_chat_gpt/lora.py": ["tests/test_lora.py", "tests/checkpoints/test_adapters.py"],
    "mini_chat_gpt/model.py": [*_MODEL, "tests/generation/test_decode.py", "tests/training/test_train_step.py"],
    "mini_chat_gpt/ops/attention.py": _MODEL,
    "mini_chat_gpt/ops/cpu_attention.py": [*_MODEL, "tests/training/test_train_step.py"],
    "mini_chat_gpt/ops/functional.py": ["tests/ops/test_fused.py", *_MODEL],
    "mini_chat_gpt/ops/fused.py": ["tests/ops/test_fused.py", *_MODEL],
    "mini_chat_gpt/ops/kv_cache.py": [*_REPLIES, *_MODEL],
    "mini_chat_gpt/ops/loss.py": ["tests/ops/test_loss.py", *_STEP],
    "mini_chat_gpt/ops/nf4.py": ["tests/ops/test_nf4.py", "tests/test_lora.py"],
    "mini_chat_gpt/ops/packed_layout.py": _MODEL,
    "mini_chat_gpt/sft_dataloader.py": ["tests/test_sft_dataloader.py"],
    "mini_chat_gpt/tinystories/tasks.py": ["tests/tinystories/test_tasks.py", "tests/test_sft_dataloader.py"],
    "mini_chat_gpt/training/adamw.py": ["tests/training/test_optim.py", *_STEP],
    "mini_chat_gpt/training/fixed_settings.py": ["tests/training/test_fixed_settings.py"],
    "mini_chat_gpt/training/job.py": [*_STEP, *_STOPS],
    "mini_chat_gpt/training/muon.py": ["tests/training/test_muon.py", "tests/training/test_optim.py"],
    "mini_chat_gpt/training/optim.py": ["tests/training/test_optim.py", *_STEP],
    "mini_chat_gpt/training/run_folder.py": [*_RUNS, *_SAVES],
    "mini_chat_gpt/training/saved_state.py": [*_STATE, "tests/training/test_trainer.py"],
    "mini_chat_gpt/training/saving.py": [*_SAVES, "tests/training/test_trainer.py"],
    "mini_chat_gpt/training/stop.py": _STOPS,
    "mini_chat_gpt/training/train_step.py": _STEP,
    "mini_chat_gpt/training/trainer.py": ["tests/training/test_trainer.py", *_STOPS],
    "mini_chat_gpt/training/validation.py": ["tests/training/test_validation.py", *_STEP],
}
