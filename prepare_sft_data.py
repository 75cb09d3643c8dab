"""Get, check and report the fine-tuning data: `python prepare_sft_data.py --help`."""

from mini_chat_gpt.common.entry import exit_with
from mini_chat_gpt.prepare.prepare import main

if __name__ == "__main__":
    exit_with(main)
