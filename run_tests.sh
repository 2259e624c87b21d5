#!/usr/bin/env bash
# Run the tests: set up if needed, then pytest from the repository's root.
#
# Usage: ./run_tests.sh [pytest arguments]
#
#   ./run_tests.sh                         all but the slow ones and those that need a GPU
#   ./run_tests.sh -m gpu                  those that need a GPU
#   ./run_tests.sh tests/unit/kernels -k poly_norm -x
#
# No test reaches the network. Which Python and which torch: setup_env.sh.
set -euo pipefail

# shellcheck source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repository"
setup_env dev
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONUNBUFFERED=1
exec "$PYTHON" -m pytest "$@"
