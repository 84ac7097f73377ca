# shellcheck shell=bash disable=SC2034
# Sourced by run_STAC.sh and run_tests.sh, in bash with set -euo pipefail. Takes
#   requirement_files   names of files beside this one (default: requirements.txt)
# and sets
#   root    the folder of this file
#   python  an interpreter that satisfies them
# The active python3 (or $PYTHON) is taken if it satisfies them; else .venv, which is made, or
# completed, here. A .venv counts only with a marker file that is written after pip succeeded.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
pip_log=$venv/pip.log
[[ -v requirement_files ]] || requirement_files=(requirements.txt)
requirement_paths=("${requirement_files[@]/#/$root/}")

stop() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_requirements() {
  "$1" "$root/check_requirements.py" "${requirement_paths[@]}" 2>/dev/null
}

# The marker has a line "hash file" for each file of requirements that was installed.
hashes() {
  (cd -- "$root" && sha256sum "${requirement_files[@]}")
}

venv_is_complete() {
  local line
  while read -r line; do
    grep -qxF -- "$line" "$venv/complete" 2>/dev/null || return 1
  done < <(hashes)
  has_requirements "$venv/bin/python" >/dev/null
}

# Prints the Python that .venv shall be made with.
find_python() {
  local candidate without_venv="" candidates=(python3.13 python3.12 python3.11 python3)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    is_new_enough "$candidate" || continue
    if "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  [[ -z $without_venv ]] || stop "$without_venv: expected the venv module, found none." \
    "Install it (sudo apt-get install $(basename "$without_venv")-venv) and run again."
  candidate=${PYTHON:-python3}
  stop "$candidate: expected Python 3.11 or newer, got $("$candidate" --version 2>&1 || true)." \
    "Install it (sudo apt-get install python3 python3-venv), or set PYTHON=/path/to/python3."
}

pip_step() {
  "$@" >>"$pip_log" 2>&1 </dev/null && return
  echo "The last lines of $pip_log:" >&2
  tail -n 12 "$pip_log" | sed 's/^/  /' >&2
  stop "$venv: expected a complete environment, the installation failed or was interrupted." \
    "Run the same command again to continue it."
}

make_venv() {
  local base=$1 path wanted=()
  rm -f "$venv/complete"
  : >"$pip_log"
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "${venv:?}"/{bin,lib,lib64,include,pyvenv.cfg}
    pip_step "$base" -m venv "$venv"
  fi
  for path in "${requirement_paths[@]}"; do wanted+=(-r "$path"); done
  pip_step "$venv/bin/python" -m pip install --no-input --disable-pip-version-check "${wanted[@]}"
  has_requirements "$venv/bin/python" ||
    stop "$venv: expected all of ${requirement_files[*]} after the installation. See $pip_log."
  hashes >"$venv/complete"
}

set_up() {
  local active=${PYTHON:-python3} lacks base lock
  [[ $active != */* || $active == /* ]] || active=$PWD/$active
  python=$active
  if ! is_new_enough "$active"; then
    lacks="is missing or older than Python 3.11"
  elif lacks=$(has_requirements "$active"); then
    return
  fi
  python=$venv/bin/python
  if venv_is_complete; then return; fi
  base=$(find_python)
  mkdir -p "$venv"
  exec {lock}>"$venv/lock"
  flock --nonblock "$lock" || { echo "Waiting for another set-up of $venv"; flock "$lock"; }
  if ! venv_is_complete; then
    echo "Setting up $venv once, with $base: several GB, some minutes; progress in $pip_log"
    echo "($active ${lacks:-cannot check ${requirement_files[*]}})"
    trap 'stop "$venv: the installation was interrupted. Run the same command to continue it."' INT
    make_venv "$base"
    trap - INT
  fi
  exec {lock}>&-
}

set_up
