#!/usr/bin/env bash
# Runs all stages of one config in order, after setting up what they need.
set -euo pipefail

usage() {
  cat <<'HELP'
usage: bash run_STAC.sh [CONFIG ...] [--set KEY=VALUE ...] [--out DIR] [--device D] [--restart]

Runs saliency, training, CAMs, pseudo labels and segmentation of one config, scores each against
the masks where the data has them, prints one table and writes OUT/report.html. Sets itself up
first (see README, Install).

  CONFIG ...           settings of all stages; keys of a later file replace those of an earlier
                       one (default: DIR/config.toml of the run in --out DIR, else
                       configs/sample.toml, the built-in sample)
  --set KEY=VALUE ...  override settings, for example --set data.root=/data/NEU-Seg train.epochs=20
  --out DIR            run folder for every file of the run (default: runs/<names of CONFIG>)
  --device D           auto, cpu or cuda (default: auto, CUDA where there is one)
  --restart            begin anew: remove what earlier calls wrote to the run folder
  -h, --help           show this

A stopped run continues at the stage it had reached when the same command is given again. With
other settings the stages they concern, and all later ones, are made anew and their old files
removed, once the data was found readable; give runs that you want to keep a folder each (--out).

CONFIG and --out are relative to the current folder; paths inside settings (data.root, ...) are
relative to this repository unless absolute. The Python to use may be given as PYTHON=/path/to/it.
HELP
}

usage_error() {
  printf 'error: %s See bash run_STAC.sh --help.\n' "$*" >&2
  exit 2
}

configs=() out="" device=auto restart=false overrides=()
while (($#)); do
  option=$1
  shift
  case $option in
    -h | --help)
      usage
      exit
      ;;
    --restart) restart=true ;;
    --out | --device)
      (($#)) || usage_error "$option: expected a value, got nothing."
      if [[ $option == --out ]]; then out=$1; else device=$1; fi
      shift
      ;;
    --set)
      [[ ${1:-} == *=* ]] || usage_error "--set: expected KEY=VALUE, got ${1:-nothing}."
      while [[ ${1:-} == *=* && $1 != -* ]]; do
        overrides+=("$1")
        shift
      done
      ;;
    -*) usage_error "$option: unknown option." ;;
    *) configs+=("$option") ;;
  esac
done
[[ $device =~ ^(auto|cpu|cuda)$ ]] ||
  usage_error "--device: expected auto, cpu or cuda, got $device."

# shellcheck source=setup_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_environment.sh"
if ((${#configs[@]} == 0)); then
  configs=("$root/configs/sample.toml")
  [[ -z $out || ! -f $out/config.toml ]] || configs=("$out/config.toml")
fi
name=""
for i in "${!configs[@]}"; do
  config=${configs[i]}
  [[ -e $config || ! -e $root/$config ]] || config=$root/$config
  configs[i]=$(realpath -m -- "$config")
  name+=_$(basename "$config" .toml)
done
out=$(realpath -m -- "${out:-$root/runs/${name#_}}")
cd -- "$root"

settings=()
((${#overrides[@]} == 0)) || settings=(--set "${overrides[@]}")
common=(--config "${configs[@]}" "${settings[@]}" --out "$out")
again=(bash "$root/run_STAC.sh" "${configs[@]}" "${settings[@]}" --out "$out" --device "$device")

keys=(data.source data.root data.eval_split cam.types cam.labels)
printed=$("$python" -m configs "${common[@]}" --get "${keys[@]}" --fingerprints)
mapfile -t values <<<"$printed"
source=${values[0]} data_root=${values[1]} eval_split=${values[2]}
read -ra cam_types <<<"${values[3]}"
read -ra cam_labels <<<"${values[4]}"
fingerprints=("${values[@]:5}") # one "stage hash" line a stage

stages=(saliency train cams pseudo_labels segmentation predictions)
count=$((${#stages[@]} + 1)) # and the table
declare -A reads=(
  [saliency]="images, image labels" [train]="images, image labels, saliency/"
  [cams]="images, stac/" [pseudo_labels]="images, cams/"
  [segmentation]="images, pseudo_labels/" [predictions]="images, segmentation/"
)
declare -A outputs=(
  [saliency]="saliency" [train]="stac"
  [cams]="cams cams_patchcam cams_attention cams_fused cams_pixel cams_predicted
    cams_patchcam_predicted cams_attention_predicted cams_fused_predicted cams_pixel_predicted"
  [pseudo_labels]="pseudo_labels" [segmentation]="segmentation"
  [predictions]="predictions predictions_colour predictions_overlay"
)
declare -A scored=( # as kind of results.jsonl
  [saliency]="saliency" [train]="none" [cams]="cam" [pseudo_labels]="pseudo_label"
  [segmentation]="none" [predictions]="segmentation"
)

leave() { # EXIT CODE, WHAT HAPPENED
  printf 'error: stage %s %s. This continues there:\n ' "$stage" "$2" >&2
  printf ' %q' "${again[@]}" >&2
  echo >&2
  exit "$1"
}

call() {
  local code=0
  "$python" "$@" || code=$?
  ((code == 0)) || leave "$code" "ended with exit code $code, see above"
}

make() { call "$@" "${common[@]}" --device "$device"; }

evaluate() { call evaluation.py "${common[@]}" --kind "$@"; }

evaluate_splits() {
  evaluate "$1" --split train
  [[ $eval_split == train ]] || evaluate "$1" --split "$eval_split"
}

run_saliency() { make make_saliency.py && evaluate_splits saliency; }
run_train() { make train_stac.py --resume; }
run_cams() {
  local type labels
  make make_cams.py
  for labels in "${cam_labels[@]}"; do
    for type in "${cam_types[@]}"; do
      evaluate cam --cam-type "$type" --labels "$labels" --split "$eval_split"
    done
  done
  [[ ${cam_labels[*]} != *given* || $eval_split == train ]] ||
    evaluate cam --labels given --split train
}
run_pseudo_labels() { make make_pseudo_labels.py && evaluate_splits pseudo_label; }
run_segmentation() { make -m segmentation.train --resume; }
run_predictions() { make -m segmentation.infer && evaluate segmentation --split "$eval_split"; }

# A stage's two marks in stages/ hold the hash of the settings it was made with: .started is there
# from its first file on, .done when all its files are complete and scored.
mark() { cat "$out/stages/$1" 2>/dev/null || true; }

has_outputs() {
  local name
  for name in ${outputs[$1]}; do [[ ! -e $out/$name ]] || return 0; done
  return 1
}

# Removes what a stage made. Its results are no longer those of any file: they leave the table.
forget() {
  local name results=$out/results.jsonl kind="\"kind\": \"${scored[$1]}\""
  [[ -n $(mark "$1.started") ]] || return 0
  rm -f "$out/stages/$1.done"
  for name in ${outputs[$1]}; do rm -rf "${out:?}/$name"; done
  if [[ -e $results ]]; then
    grep -F "$kind" "$results" >>"$out/stages/old_results.jsonl" || true
    grep -vF "$kind" "$results" >"$results.tmp" || true
    mv "$results.tmp" "$results"
  fi
  rm -f "$out/stages/$1.started"
}

forget_from() {
  local i name made=() # the last stage first
  for ((i = $1; i < ${#stages[@]}; i++)); do
    [[ -z $(mark "${stages[i]}.started") ]] || made=("${stages[i]}" "${made[@]}")
  done
  ((${#made[@]} == 0)) || echo "removing what an earlier call made, stages ${made[*]}"
  for name in "${made[@]}"; do forget "$name"; done
}

minutes_since() { awk -v s=$((SECONDS - $1)) 'BEGIN { printf "%.1f min", s / 60 }'; }

mkdir -p "$out/stages"
exec {run_lock}>"$out/stages/lock"
flock --nonblock "$run_lock" || stop "$out: expected no other run, found one at work. Wait for it," \
  "or give another --out."
# With data that cannot be read, an earlier run stays as it is.
[[ -z $(mark saliency.started) ]] || "$python" -m datasets "${common[@]}"
if [[ $restart == true && -n $(mark saliency.started) ]]; then
  forget_from 0
  rm -f "$out/results.jsonl"
fi
for stage in "${stages[@]}"; do
  [[ -n $(mark "$stage.started") ]] || ! has_outputs "$stage" ||
    stop "$out: expected only files of run_STAC.sh, got some of stage $stage that were made" \
      "otherwise. Remove them, or give another --out."
done

# Image labels of another data set must not survive; a labels.csv put there by the user must.
origin="$source $data_root"
made_from=$(mark labels)
if [[ -n $made_from && ($made_from != "$origin" || $restart == true) ]]; then
  rm -f "$out/labels.csv"
fi
[[ -e $out/labels.csv ]] || echo "$origin" >"$out/stages/labels"

echo "config ${configs[*]}, run folder $out, device $device"
begin_run=$SECONDS number=0
trap 'leave 130 "was interrupted"' INT
for line in "${fingerprints[@]}"; do
  read -r stage wanted <<<"$line"
  number=$((number + 1))
  title="[$number/$count] $stage"
  if [[ $(mark "$stage.done") == "$wanted" ]] && has_outputs "$stage"; then
    echo "$title: up to date"
    continue
  fi
  if [[ $(mark "$stage.started") == "$wanted" && -z $(mark "$stage.done") ]]; then
    title+=" (continued)"
  else
    forget_from $((number - 1))
  fi
  echo "$wanted" >"$out/stages/$stage.started"
  echo "$title: reads ${reads[$stage]} -> writes ${outputs[$stage]%%[[:space:]]*}/"
  begin_stage=$SECONDS
  "run_$stage"
  echo "$wanted" >"$out/stages/$stage.done"
  echo "[$number/$count] $stage: $(minutes_since "$begin_stage")"
done

stage=table
echo "[$count/$count] table: reads results.jsonl, predictions/ -> writes report.html"
call evaluation.py --out "$out" --table
call report.py "${common[@]}"
echo "every stage in $out is up to date, $(minutes_since "$begin_run")"
if [[ $source == sample ]]; then
  echo "next, real images: bash run_STAC.sh configs/neu_seg_cpu.toml --set data.root=/path/to/NEU-Seg"
else
  echo "next, other settings beside this run: bash run_STAC.sh ${configs[*]} --set loss.contrast=0.1" \
    "--out $out-contrast-0.1"
fi
