#!/usr/bin/env bash
# Lints and tests, after setting up what that needs.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
usage: bash run_tests.sh [PYTEST ARGUMENT ...]

Sets itself up (see README, Install), then runs ruff check, ruff format --check and pytest.
Arguments go to pytest: bash run_tests.sh tests/test_configs.py -k override
HELP
  exit
fi

# shellcheck source=setup_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_environment.sh"
cd -- "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest "$@"
