#!/usr/bin/env bash
# Fine-tuning on real data: import stories260K, label plain TinyStories as Instruct records, fine-tune in two phases, and
# compare with the base on the real validation stories. Takes about half an hour on one core.
#   MINI_CHAT_GPT_DATA=FOLDER benchmarks/stories260k.sh [WORK_FOLDER]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
data="${MINI_CHAT_GPT_DATA:?set MINI_CHAT_GPT_DATA to the folder with tinystories/ and stories260K/}"
data="$(cd "$data" && pwd)"
mkdir -p "${1:-runs-stories260k}" && cd "${1:-runs-stories260k}"

[ -d derived ] || mini-chat-gpt prepare --folder derived \
    --label "$data/tinystories/stories-train.txt" "$data/tinystories/stories-valid.txt"
[ -d runs/stories260K ] || mini-chat-gpt import "$data/stories260K/stories260K.bin" runs/stories260K
time mini-chat-gpt sft --config "$here/stories260k_lookup.yaml"
time mini-chat-gpt sft --config "$here/stories260k_tasks.yaml"
mini-chat-gpt evaluate --checkpoint runs/stories260K-sft/last --against runs/stories260K --data derived --n 400 \
    --kinds main_character dialogue moral words why quote --json results.json
