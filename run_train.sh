#!/usr/bin/env bash
# Train: set up if needed, check the config, prepare the built-in corpus if it is used, torchrun.
#
# Usage: [VARIABLE=value ...] ./run_train.sh [--section.field value ...]
#
#   ./run_train.sh                                             the debug run, on whatever is here
#   ./run_train.sh --training.steps 50 --metrics.log_freq 1    settings that override the file's
#   NGPU=8 CONFIG_FILE=train_configs/debug.toml ./run_train.sh 8 processes, another file
#   LOG_RANK=0,1 ./run_train.sh                                show two ranks, prefixed
#   PREPARE_ONLY=1 ./run_train.sh                              all but the training itself
#
#   CONFIG_FILE    absolute, relative to your directory, or to the repository
#                  (default train_configs/debug.toml)
#   NGPU           processes on this machine (default: all GPUs, or 2 processes on CPU)
#   LOG_RANK       local ranks whose output is shown (default 0); the others write to LOG_DIR
#   LOG_DIR        default outputs/rank_logs
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT    several machines: docs/cluster.md
#   PYTHON, TORCH_SPEC                             which Python, which torch: setup_env.sh
#
# Relative paths among the overrides are relative to your directory, those in a file to the
# repository. Every setting, with its default: docs/reference.md.
#
# Exit code: 0; 1 if a rank has failed, or nothing could be set up; 2 if the config is wrong, or its
# data; 75 if the run was stopped by a signal and has saved, so that it goes on when started again;
# 128 + the signal if it has not.
set -euo pipefail

callers_directory=$(pwd -P)
# shellcheck source=setup_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repository"

main() {
  case " $* " in *" --help "* | *" -h "*) usage && return ;; esac
  local config_file
  config_file=$(find_config "${CONFIG_FILE:-train_configs/debug.toml}")
  resolve_paths "$@"
  set -- --job.config_file "$config_file" ${overrides[@]+"${overrides[@]}"}

  setup_env
  export PYTHONUNBUFFERED=1
  choose_processes
  prepare "$@"
  [[ -z ${PREPARE_ONLY:-} ]] || return 0
  launch "$@"
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$repository/run_train.sh"; }

find_config() { # FILE
  if [[ $1 != /* && $callers_directory != "$repository" && -e $callers_directory/$1 ]]; then
    echo "$callers_directory/$1"
  else
    echo "$1"
  fi
}

# Fill `overrides` with the arguments, paths made independent of the current directory.
resolve_paths() {
  local argument key=""
  overrides=()
  for argument in "$@"; do
    if [[ $argument == --*=* ]]; then
      argument="${argument%%=*}=$(resolve_value "${argument%%=*}" "${argument#*=}")"
      key=""
    elif [[ $argument == --* ]]; then
      key=$argument
    else
      argument=$(resolve_value "$key" "$argument")
      key=""
    fi
    overrides+=("$argument")
  done
}

resolve_value() { # KEY VALUE
  case "${1//-/_}" in # dashes and underscores are the same
    __job.config_file) find_config "$2" && return ;;
    __model.hf_assets_path | __checkpoint.initial_load_path | \
      __job.dump_folder | __training.dataset_path)
      if [[ -n $2 && $2 != auto && $2 != none && $2 != /* && $2 != *://* &&
        $callers_directory != "$repository" ]]; then
        echo "$callers_directory/$2" && return
      fi ;;
  esac
  printf '%s\n' "$2"
}

# Set num_gpus, NGPU, NNODES and LOG_RANK; check them, and those of several machines.
choose_processes() {
  num_gpus=0
  if command -v nvidia-smi >/dev/null || [[ -e /dev/nvidiactl || -e /dev/kfd ]]; then
    num_gpus=$("$PYTHON" -W ignore -c "import torch; print(torch.cuda.device_count())") ||
      die "cannot count the GPUs; set NGPU"
  fi
  LOG_RANK=${LOG_RANK:-0}
  NGPU=${NGPU:-$((num_gpus > 0 ? num_gpus : 2))}
  NNODES=${NNODES:-1}
  [[ $NGPU =~ ^[1-9][0-9]*$ ]] || die "NGPU is '$NGPU'; a positive number is needed"
  [[ $NNODES =~ ^[1-9][0-9]*$ ]] || die "NNODES is '$NNODES'; a positive number is needed"
  local rank shown="LOG_RANK is '$LOG_RANK'; local ranks from 0 to $((NGPU - 1)) are needed"
  [[ $LOG_RANK =~ ^(0|[1-9][0-9]*)(,(0|[1-9][0-9]*))*$ ]] || die "$shown"
  for rank in ${LOG_RANK//,/ }; do
    ((rank < NGPU)) || die "$shown"
  done
  if ((NNODES > 1)); then
    [[ -n ${NODE_RANK:-} ]] || die "NNODES is $NNODES; set NODE_RANK to this machine's, from 0"
    [[ -n ${MASTER_ADDR:-} ]] || die "NNODES is $NNODES; set MASTER_ADDR to machine 0's name"
  fi
  ((num_gpus == 0 || NGPU <= num_gpus)) || die "NGPU is $NGPU; this machine shows $num_gpus GPUs"
}

# Check the config (its one line and exit code are ours), make the built-in corpus if it is used.
prepare() {
  local found corpus
  found=$("$PYTHON" -m titan_motif.check_config --world-size $((NGPU * NNODES)) "$@") || exit $?
  corpus=$(sed -n 's/^corpus: //p' <<<"$found")
  [[ -n $corpus ]] || return 0
  [[ -e ${corpus% *} ]] || say "preparing the built-in corpus in ${corpus% *}"
  "$PYTHON" -m titan_motif.corpus --output "${corpus% *}" --vocab-size "${corpus##* }" || exit $?
}

launch() {
  local rank hidden="" where threads=""
  local log_dir=${LOG_DIR:-outputs/rank_logs}
  [[ -z ${LOG_DIR:-} || $log_dir == /* ]] || log_dir=$callers_directory/$log_dir
  for ((rank = 0; rank < NGPU; rank++)); do
    [[ ",$LOG_RANK," == *",$rank,"* ]] || hidden+="${hidden:+,}$rank:3"
  done
  local options=(--nproc_per_node "$NGPU" --nnodes "$NNODES" --log-dir "$log_dir" --role rank)
  [[ -z $hidden ]] || options+=(--redirects "$hidden")
  # One rank's lines are shown as they are, several with the rank before each.
  [[ $LOG_RANK != *,* ]] || options+=(--tee 3 --local-ranks-filter "$LOG_RANK")
  if ((NNODES == 1)); then
    options+=(--rdzv_backend c10d --rdzv_endpoint localhost:0 --rdzv_id "$(date +%Y%m%d-%H%M%S)")
  else
    options+=(--node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR")
    options+=(--master_port "${MASTER_PORT:-29500}")
  fi

  if ((num_gpus > 0)); then
    where="GPU"
    export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
  else
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > NGPU ? cores / NGPU : 1))}"
    where="CPU" threads=", $OMP_NUM_THREADS thread(s) each"
  fi
  say "$NGPU process(es) on $where$threads${hidden:+; output of unshown ranks: $log_dir}"
  exec "$PYTHON" -m titan_motif.launch "${options[@]}" -m titan_motif.train "$@"
}

main "$@"
