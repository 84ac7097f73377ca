#!/usr/bin/env bash
# What a day with a GPU is for: costs, then all stages with the paper's settings, in one command.
set -euo pipefail

if [[ $# -lt 2 || $1 == -h || $1 == --help ]]; then
  cat <<'HELP'
usage: bash studies/gpu_day.sh DATA OUT [--set KEY=VALUE ...]

Writes OUT/costs.md (images/s, memory, share of the peak; speedups against the usual ways) and the
run folder OUT/run of configs/neu_seg.toml with configs/variants/paper.toml, and prints both tables.
The minutes of each stage are in OUT/run.log, the seconds of each epoch in OUT/run/stac/log.jsonl.

  DATA  the unpacked release of NEU-Seg
  OUT   a new folder

Settings may follow, for example --set train.backbone=vit_small_patch14_dinov2 data.eval_split=val
where only those weights and no test split are at hand. Rehearsal on a CPU:

  DEVICE=cpu bash studies/gpu_day.sh DATA OUT --set data.limit=16 train.epochs=1 segmentation.epochs=1
HELP
  exit
fi

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
data=$1 out=$2 device=${DEVICE:-cuda}
shift 2
settings=("data.root=$data")
[[ ${1:-} != --set ]] || { shift; settings+=("$@"); }
mkdir -p "$out"
python=${PYTHON:-python3}
batches=(--batch-sizes 16 64 256)
pairs=7
[[ $device == cuda ]] || { batches=(--batch-sizes 2 --repeats 1); pairs=1; }

{
  "$python" -m benchmarks.throughput --device "$device" "${batches[@]}"
  echo
  "$python" -m benchmarks --device "$device" --rows training cams contrast pamr --pairs "$pairs"
} | tee "$out/costs.md"
bash run_STAC.sh configs/neu_seg.toml configs/variants/paper.toml --out "$out/run" \
  --device "$device" --set "${settings[@]}" 2>&1 | tee "$out/run.log"
