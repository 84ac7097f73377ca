#!/usr/bin/env bash
# Lints and tests, after setting up what that needs.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
usage: bash run_tests.sh [--lowest] [PYTEST ARGUMENT ...]

Sets itself up, then runs ruff check, ruff format --check and pytest, two tests at a time.
Arguments go to pytest: bash run_tests.sh tests/configs -k override

  --lowest   test with the oldest versions that requirements.txt allows, in .venv-lowest, and
             print these versions; needs several GB
HELP
  exit
fi

requirement_files=(requirements.txt requirements-dev.txt)
if [[ ${1:-} == --lowest ]]; then
  shift
  cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
  python=.venv-lowest/bin/python
  pins=$(sed 's/>=/==/' requirements.txt)
  [[ -x $python ]] || "${PYTHON:-python3}" -m venv .venv-lowest
  "$python" -m pip install --quiet --no-input -r /dev/stdin -r requirements-dev.txt <<<"$pins"
  grep -v '^#' <<<"$pins"
else
  # shellcheck source=setup_environment.sh
  source "$(dirname -- "${BASH_SOURCE[0]}")/setup_environment.sh"
  cd -- "$root"
fi
"$python" -m ruff check .
"$python" -m ruff format --check .
# Two processes of one thread each beat one of two: most tests are too small for threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n 2 --dist loadfile "$@"
