#!/usr/bin/env bash
# Installs fastrnn into fresh environments of each kind it promises to work in, and runs a small
# LSTM in each. Needs a C++ compiler, ninja, git and the network (or a local wheel of torch).
# One argument or more: run only those cases.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH CXX CUDA_HOME FASTRNN_CUDA FASTRNN_CUDA_ARCHS FASTRNN_REQUIRE_EXT FASTRNN_BACKEND
unset PIP_CONSTRAINT PIP_BUILD_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
constraints=$root/constraints.txt
mkdir "$work/no-cuda" "$work/tools"

# A copy of the sources as a clone would have them: tracked and new files, nothing ignored.
sources() {
  mkdir "$work/$1-src"
  git -C "$root" ls-files -z --cached --others --exclude-standard |
    tar -C "$root" --null --files-from=- --create --ignore-failed-read |
    tar -C "$work/$1-src" --extract
}

environment() { "${PYTHON:-python3}" -m venv "$work/$1"; }

# An environment that sees the one torch installed below, without installing it again.
environment_with_torch() {
  if [ ! -d "$work/torch" ]; then
    environment torch
    "$work/torch/bin/python" -m pip install --constraint "$constraints" torch numpy
  fi
  environment "$1"
  local site='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$work/torch/bin/python" -c "$site" >"$("$work/$1/bin/python" -c "$site")/torch.pth"
}

# check CASE native|reference cuda|cpu REASON [FOLDER]
check() {
  (cd "${5:-$work}" && PYTHONPATH="${5:-}" "$work/$1/bin/python" \
    "$root/tests/install_check.py" "$2" "$3" "$4") >"$work/$1.log" 2>&1 || {
    cat "$work/$1.log"
    echo "FAILED: $1"
    exit 1
  }
}

# Links the named programs into a folder of their own, to be the whole PATH.
only() {
  rm -rf "$work/tools"
  mkdir "$work/tools"
  local program
  for program in "$@"; do
    ln -s "$(command -v "$program")" "$work/tools/$program"
  done
}

case_cpu_torch() {
  environment_with_torch cpu_torch
  sources cpu_torch
  CUDA_HOME=$work/no-cuda "$work/cpu_torch/bin/python" -m pip install -e "$work/cpu_torch-src"
  check cpu_torch native cpu ""
}

case_wheel() {
  environment_with_torch wheel
  sources wheel
  CUDA_HOME=$work/no-cuda "$work/wheel/bin/python" -m pip install "$work/wheel-src"
  check wheel native cpu ""
}

case_no_torch() {
  environment no_torch
  sources no_torch
  # pip before 25.3 takes the first for its build environments too, later ones only the second.
  CUDA_HOME=$work/no-cuda PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints \
    "$work/no_torch/bin/python" -m pip install -e "$work/no_torch-src"
  check no_torch native cpu ""
}

case_no_compiler() {
  environment_with_torch no_compiler
  sources no_compiler
  only env uname sh cat
  PATH=$work/tools "$work/no_compiler/bin/python" -m pip install -e "$work/no_compiler-src"
  check no_compiler reference cpu "no C++ compiler"
  if PATH=$work/tools FASTRNN_REQUIRE_EXT=1 \
    "$work/no_compiler/bin/python" -m pip install -e "$work/no_compiler-src" \
    >"$work/required.log" 2>&1; then
    echo "FAILED: no_compiler: FASTRNN_REQUIRE_EXT=1 installed without a compiler"
    exit 1
  fi
  grep -q "no C++ compiler" "$work/required.log"
}

case_nvcc() {
  if ! command -v nvcc >/dev/null && [ ! -d /usr/local/cuda ]; then
    echo "skipped: nvcc (no CUDA toolkit on this machine)"
    return
  fi
  environment_with_torch nvcc
  sources nvcc
  FASTRNN_CUDA=1 "$work/nvcc/bin/python" -m pip install -e "$work/nvcc-src"
  check nvcc native cuda ""
}

case_nvcc_off() {
  environment_with_torch nvcc_off
  sources nvcc_off
  FASTRNN_CUDA=0 "$work/nvcc_off/bin/python" -m pip install -e "$work/nvcc_off-src"
  check nvcc_off native cpu ""
}

case_offline() {
  environment_with_torch offline
  # torch brings a newer setuptools than the venv's, but the link to torch does not show it.
  "$work/offline/bin/python" -m pip install --upgrade setuptools
  sources offline
  CUDA_HOME=$work/no-cuda PIP_FIND_LINKS='' PIP_NO_INDEX=1 \
    "$work/offline/bin/python" -m pip install --no-build-isolation -e "$work/offline-src"
  check offline native cpu ""
}

case_in_place() {
  environment_with_torch in_place
  sources in_place
  only g++ as ld env
  (cd "$work/in_place-src" && CUDA_HOME=$work/no-cuda PATH=$work/tools \
    "$work/in_place/bin/python" setup.py --quiet build_ext --inplace) >"$work/build.log"
  # ninja is hidden, so no line of its progress may be there.
  if grep -q '^\[[0-9]*/[0-9]*\]' "$work/build.log"; then
    echo "FAILED: in_place: ninja ran"
    exit 1
  fi
  check in_place native cpu "" "$work/in_place-src"
}

cases=("$@")
[ $# -gt 0 ] ||
  cases=(cpu_torch wheel no_torch no_compiler nvcc nvcc_off offline in_place)
for name in "${cases[@]}"; do
  started=$SECONDS
  "case_$name"
  [ ! -d "$work/$name" ] || echo "ok: $name ($((SECONDS - started)) s)"
done
