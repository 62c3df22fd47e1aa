#!/usr/bin/env bash
# Everything there is to see on a CUDA GPU, in less than 8 minutes: whether it agrees with the CPU, then speed beside PyTorch.
#   benches/gpu.sh                        builds with the feature `cuda` first (nvcc by NVCC, CUDA_HOME or PATH, and cuDNN)
#   benches/gpu.sh FOLDER                 takes `parity`, `steps` and `recant` from there, built elsewhere by
#                                         cargo build --release --features cuda --bins --bench parity --bench steps
# RECANT_PYTHON names a Python with PyTorch, RECANT_DATA a data folder with Fashion-MNIST (for trainings side by side); what is printed
# lies in gpu.txt too. A part that fails does not end the others.
set -uo pipefail
cd "$(dirname "$0")/.."
began=$SECONDS
exec > >(tee gpu.txt) 2>&1
if [ $# -gt 0 ]; then
  parity=$1/parity steps=$1/steps recant=$1/recant
else
  built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }
  parity=$(cargo bench --locked --no-run --features cuda --bench parity --message-format json | built | tail -n 1)
  steps=$(cargo bench --locked --no-run --features cuda --bench steps --message-format json | built | tail -n 1)
  recant=$(cargo build --release --locked --features cuda --bin recant --message-format json | built | tail -n 1)
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
failed=0
part() { # what, its limit in seconds, its words
  local what=$1 limit=$2
  shift 2
  echo "== $what (from second $((SECONDS - began)))"
  timeout "$limit" "$@" || { echo "== $what: ended with $?"; failed=1; }
}
part parity 80 "$parity" cuda:0
compare() { python3 benches/compare.py --device cuda:0 --program "$steps" "$@"; }
export -f compare; export steps
part "small steps" 100 bash -c 'compare --rows resnet18,scrub --batch 64,256 --turns 1 --seconds 1'
part "small steps, launch by launch" 50 env RECANT_CUDA_GRAPHS=0 bash -c 'compare --rows resnet18,scrub --batch 64 --turns 1 --seconds 1'
if [ -n "${RECANT_DATA:-}" ]; then
  part "many at once" 50 python3 benches/many.py --data "$RECANT_DATA" --device cuda:0 --program "$recant" --jobs 1,4 --turns 1
else
  echo "== many at once: not run, for RECANT_DATA names no folder with Fashion-MNIST"
fi
part "large steps" 100 bash -c 'compare --rows resnet18 --batch 1024 --turns 2 --seconds 1 --compile'
part "other networks" 100 bash -c 'compare --rows resnet50,allcnn,dcgan,opengan --batch 128 --turns 1 --seconds 1'
echo "== done in $((SECONDS - began)) s"
exit $failed
