#!/usr/bin/env bash
# Runs all stages of one config in order, after setting up what they need; pipeline.py does it.
set -euo pipefail

for word in "$@"; do
  [[ $word == -h || $word == --help ]] || continue
  cat <<'HELP'
usage: bash run_STAC.sh [CONFIG ...] [--set KEY=VALUE ...] [--out DIR] [--device D] [--restart]
                        [--skip-bad]

Runs saliency, training, CAMs, pseudo labels and segmentation of one config, scores each against
the masks where the data has them, prints one table and writes OUT/report.html. Sets itself up
first, and looks whether every file can be used before it begins.

  CONFIG ...           settings of all stages; keys of a later file replace those of an earlier
                       one (default: DIR/config.toml of the run in --out DIR, else
                       configs/sample.toml, the built-in sample)
  --set KEY=VALUE ...  override settings, for example --set data.root=/data/NEU-Seg train.epochs=20
  --out DIR            run folder for every file of the run (default: runs/<names of CONFIG>)
  --device D           auto, cpu or cuda (default: auto, CUDA where there is one)
  --restart            begin anew: remove what earlier calls wrote to the run folder
  --skip-bad           go on without pictures that cannot be used; they are listed in
                       OUT/skipped.csv
  -h, --help           show this

A stopped run continues at the stage it had reached when the same command is given again. With
other settings the stages they concern, and all later ones, are made anew and their old files
removed, once the data was found readable; give runs that you want to keep a folder each (--out).

CONFIG and --out are relative to the current folder; paths inside settings (data.root, ...) are
relative to this repository unless absolute. The Python to use may be given as PYTHON=/path/to/it.
HELP
  exit
done

# shellcheck source=setup_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_environment.sh"
called_from=$PWD
# Threads that wait soon sleep. Those that spin on take the cores from the ones that work: beside
# another job PAMR then takes eighty times as long (docs/performance.md).
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
cd -- "$root"
exec "$python" pipeline.py --called-from "$called_from" "$@"
