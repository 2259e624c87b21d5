#!/usr/bin/env bash
# Fine-tune in three stages, small: what the 12.7B model's three stages do, in minutes on a CPU.
#
#   ./run_sft.sh                      from the debug run's checkpoint, which ./run_train.sh makes
#   ./run_sft.sh --training.steps 5   settings that override those of every stage's file
#
#   BASE          the checkpoint to begin from: a step, or a run's checkpoint folder
#                 (default outputs/debug/checkpoint)
#   NGPU, ...     as of ./run_train.sh
#
# Conversations are made in data/conversations, packed in data/packed; the third stage has the
# second one's without what `titan-motif data prune` leaves out. Before the first stage and after
# each, 200 sums that no stage has seen are asked. Started again, it goes on where it was.
set -euo pipefail

# shellcheck source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repository"

conversations=data/conversations

main() {
  case " $* " in *" --help "* | *" -h "*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && return ;; esac
  local base=${BASE:-outputs/debug/checkpoint} stage begin
  [[ -d $base ]] || die "$base: no such folder; ./run_train.sh makes outputs/debug/checkpoint," \
    "BASE names another"
  setup_env
  export PYTHONUNBUFFERED=1
  "$PYTHON" -m titan_motif.corpus.conversations --output "$conversations"
  ask --base "$base"
  begin=$base
  for stage in 1 2 3; do
    ((stage < 3)) || prune
    say "stage $stage of 3, from $begin"
    CONFIG_FILE=train_configs/debug_sft_stage$stage.toml \
      ./run_train.sh --checkpoint.initial_load_path "$begin" "$@"
    begin=outputs/debug_sft_stage$stage/checkpoint
    ask "$begin"
  done
}

# Threads that wait for each other cost a small model more than they bring.
ask() { OMP_NUM_THREADS=1 "$PYTHON" -m titan_motif.evaluation.sums "$@"; }

prune() {
  [[ ! -d $conversations/stage3 ]] || return 0
  "$PYTHON" -m titan_motif.cli data prune --inputs "$conversations/stage2.jsonl" \
    --output "$conversations/stage3"
}

main "$@"
