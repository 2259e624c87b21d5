# Sourced by run_train.sh, run_tests.sh and .ci/run; needs bash with `set -euo pipefail`.
#
#   setup_env        find or make a Python that can train; its path is then in $PYTHON
#   setup_env dev    one that can also run the tests
#
# Taken, in this order: $PYTHON, the active virtual or conda environment, the repository's .venv,
# python3 on the PATH. The first one that has titan_motif and all it needs is used as it is.
# Where none has, .venv is made here, once, in minutes; an interrupted set-up goes on next time.
#
#   TORCH_SPEC       what pip installs first, default torch==2.13.0; never replaced afterwards,
#                    except by another TORCH_SPEC. For a build other than your platform's default
#                    (the small CPU one on Linux, another CUDA), name the index that holds it in
#                    pip's own PIP_INDEX_URL or PIP_EXTRA_INDEX_URL.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$repository/.venv

# The imports of pyproject's dependencies.
train_modules="titan_motif torch torchtitan torchao torchdata triton tomli tomli_w tensorboard"
train_modules+=" tokenizers jinja2 datasets pyarrow safetensors numpy matplotlib tyro rich"
dev_modules="pytest pytest_timeout ruff importlinter transformers mkdocs material"

say() { echo "[setup] $*" >&2; }

die() {
  echo "error: $*" >&2
  exit 1
}

setup_env() {
  local extras=${1:-} chosen
  [[ $extras == "" || $extras == dev ]] || die "setup_env: unknown extras '$extras'; use dev"
  chosen=$(_active_python)
  if [[ -n $chosen && $chosen != "$venv/"* && -z $(_problem "$chosen" "$extras") ]]; then
    PYTHON=$chosen
  elif _is_complete "$extras"; then
    PYTHON=$venv/bin/python
  elif [[ ! -e $venv && -z $chosen && -z $(_problem python3 "$extras") ]]; then
    PYTHON=$(command -v python3)
  else
    (_complete_venv "$extras") || exit 1
    PYTHON=$venv/bin/python
  fi
  export PYTHON PYTHONSAFEPATH=1  # a top-level kernels/ must not shadow the package of that name
}

_active_python() {
  local python=${PYTHON:-}
  if [[ -n $python ]]; then
    command -v "$python" || die "PYTHON=$python: no such program"
  elif [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
    echo "$VIRTUAL_ENV/bin/python"
  elif [[ -n ${CONDA_PREFIX:-} && -x $CONDA_PREFIX/bin/python ]]; then
    echo "$CONDA_PREFIX/bin/python"
  fi
}

# Print why a Python cannot run this repository; nothing if it can.
_problem() { # PYTHON EXTRAS
  local modules=$train_modules
  [[ $2 != dev ]] || modules="$modules $dev_modules"
  command -v "$1" >/dev/null || { echo "does not exist"; return; }
  # shellcheck disable=SC2086  # one argument for each module
  PYTHONSAFEPATH=1 "$1" - "$repository" $modules <<'PYTHON_END' || echo "does not run"
import os, sys
from importlib.util import find_spec

repository, *modules = sys.argv[1:]
if sys.version_info < (3, 11):
    sys.exit(print("is older than Python 3.11"))
missing = [name for name in modules if find_spec(name) is None]
if missing:
    sys.exit(print("lacks " + ", ".join(missing)))
origin = os.path.realpath(find_spec("titan_motif").origin or "")
if not origin.startswith(repository + os.sep) and "site-packages" not in origin:
    print("has titan_motif from another checkout, " + os.path.dirname(os.path.dirname(origin)))
PYTHON_END
}

# The state that a stamp records: the project file and where the editable install points.
_fingerprint() { # EXTRAS
  echo "$(cksum <"$repository/pyproject.toml") ${1:-train} $repository"
}

_stamp() { echo "$venv/.titan_motif_setup${1:+_$1}"; } # EXTRAS

_has_wanted_torch() {
  local recorded=$venv/.titan_motif_torch
  [[ -f $recorded ]] && [[ -z ${TORCH_SPEC:-} || $TORCH_SPEC == "$(cat "$recorded")" ]]
}

_torch_version() {
  "$venv/bin/python" -c 'from importlib.metadata import version as v; print("torch==" + v("torch"))'
}

_is_complete() { # EXTRAS
  local stamp
  if [[ ! -f $venv/setup.log ]]; then # made by hand, or not yet
    [[ -z ${TORCH_SPEC:-} && -z $(_problem "$venv/bin/python" "$1") ]]
    return
  fi
  stamp=$(_stamp "$1")
  [[ -x $venv/bin/python && -f $stamp ]] && _has_wanted_torch &&
    [[ $(cat "$stamp") == "$(_fingerprint "$1")" ]]
}

# Make or complete .venv. Runs in a subshell, so that the lock ends with it.
_complete_venv() { # EXTRAS
  local extras=$1 torch=${TORCH_SPEC:-torch==2.13.0} constraints=$venv/.titan_motif_constraints
  mkdir -p "$venv" || die "cannot write to $repository"
  if command -v flock >/dev/null; then # two jobs started at once: the second one waits
    exec 9>"$venv/.setup.lock"
    flock -n 9 || { say "waiting for another set-up of .venv" && flock 9; }
    ! _is_complete "$extras" || return 0
  fi
  export PYTHONSAFEPATH=1 PIP_DISABLE_PIP_VERSION_CHECK=1

  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    _make_venv
  elif [[ ! -f $venv/setup.log && -z ${TORCH_SPEC:-} ]]; then # made by hand: its torch stays
    _torch_version >"$venv/.titan_motif_torch" 2>/dev/null || rm -f "$venv/.titan_motif_torch"
  fi

  : >"$venv/setup.log"
  if ! _has_wanted_torch; then
    rm -f "$venv/.titan_motif_torch" "$(_stamp)" "$(_stamp dev)"
    say "2/4 installing torch ($torch)"
    _pip "$torch"
    echo "$torch" >"$venv/.titan_motif_torch"
  fi

  say "3/4 installing titan-motif${extras:+ with the $extras tools} and what it needs"
  _torch_version >"$constraints" 2>>"$venv/setup.log" ||
    die "torch has gone from $venv; remove that folder and start again"
  rm -f "$(_stamp)" "$(_stamp dev)" # of an install that may point elsewhere from here on
  _pip --constraint "$constraints" --editable "$repository${extras:+[$extras]}"

  say "4/4 checking the environment"
  local problem
  problem=$(_problem "$venv/bin/python" "$extras")
  [[ -z $problem ]] || die "$venv $problem; remove that folder and start again"
  "$venv/bin/python" -c "import torch" 2>>"$venv/setup.log" ||
    die "torch does not import: $(tail -n 1 "$venv/setup.log")"
  _fingerprint "" >"$(_stamp)"
  [[ -z $extras ]] || _fingerprint "$extras" >"$(_stamp "$extras")"
}

_make_venv() {
  local base active
  active=$(_active_python)
  [[ $active != "$venv/"* ]] || active=""
  base=$(_base_python "$active")
  [[ -n $base ]] || die "Python 3.11 or later is needed;" \
    "${active:-python3} is $("${active:-python3}" -V 2>&1 || true)"
  "$base" -c "import venv, ensurepip" 2>/dev/null ||
    die "$base lacks the venv module (on Debian and Ubuntu: the package python3-venv)"
  [[ -z $active ]] || say "$active $(_problem "$active" "$extras"); making .venv instead"
  say "1/4 creating .venv ($("$base" -V), $base)"
  "$base" -m venv "$venv" >"$venv/setup.log" 2>&1 ||
    die "cannot create $venv: $(tail -n 1 "$venv/setup.log")"
}

# Print the first Python of 3.11 or later; only the given one, if one is given.
_base_python() { # [PYTHON]
  local name
  # shellcheck disable=SC2048,SC2086
  for name in ${1:+"$1"} $([[ -n $1 ]] || echo python3 python python3.13 python3.12 python3.11); do
    if "$name" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
}

_pip() {
  "$venv/bin/python" -m pip install "$@" >>"$venv/setup.log" 2>&1 </dev/null && return
  tail -n 8 "$venv/setup.log" | sed 's/^/[setup]   /' >&2
  die "pip failed (all of its output: $venv/setup.log); the next start goes on from here"
}
