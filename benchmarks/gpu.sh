#!/usr/bin/env bash
# Everything that needs a GPU, with random weights and nothing beyond this repository. Each part takes at most four minutes:
#
#     benchmarks/gpu.sh parity    the GPU's results against plain formulas: PASS or FAIL, exit code 1 after a FAIL
#     benchmarks/gpu.sh speed     tokens per second of training and of replies, and of other implementations that are installed
#     benchmarks/gpu.sh           both
#
# Options: --tiny (small models, for a CPU), --device DEVICE, --only NAME … . PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
