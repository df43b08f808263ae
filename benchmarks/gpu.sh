#!/usr/bin/env bash
# Everything that is to be done on a machine with a GPU, which needs no network:
#
#     benchmarks/gpu.sh FOLDER
#
# builds in place, runs all tests, compute-sanitizer and the CUDA benchmark, and leaves JSON, plots
# and logs in FOLDER. It takes less than ten minutes on 16 cores. Python packages that the machine
# lacks are installed from the wheels in the folder $WHEELS, if it is set.
#
# PYTHON: the interpreter that has a CUDA torch (default: python3). TORCH_CUDA_ARCH_LIST: default
# the first GPU's own. Each part runs even if an earlier one failed; the exit status says whether
# all of them passed, and FOLDER/summary.txt which did not and how long each took.
set -uo pipefail
output=$(mkdir -p "${1:?usage: benchmarks/gpu.sh FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} PYTHONUNBUFFERED=1 FUSED_OPTIM_CUDA=1
failed=0
: >"$output/summary.txt"

part() { # NAME SECONDS COMMAND...: runs it into FOLDER/NAME.log, within what is left of 580 s
  local name=$1 seconds=$2 start=$SECONDS left=$((580 - SECONDS)) status=passed
  shift 2
  seconds=$((seconds < left ? seconds : left > 1 ? left : 1))
  timeout "$seconds" "$@" >"$output/$name.log" 2>&1 || { status="FAILED ($?)"; failed=1; }
  echo "$name: $status, $((SECONDS - start)) s" | tee -a "$output/summary.txt"
  [ "$status" = passed ] || tail -n 25 "$output/$name.log"
}

if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
  export TORCH_CUDA_ARCH_LIST
fi
if [ -n "${WHEELS:-}" ]; then
  part wheels 60 "$python" -m pip install --no-index --find-links "$WHEELS" --no-deps "$WHEELS"/*.whl
fi
part build 300 "$python" -m pip install --no-build-isolation --no-deps -e .
part info 60 "$python" -m fused_optim info
cat "$output/info.log"

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
part tests-cuda 240 "$python" -m pytest tests/cuda --ignore tests/cuda/test_cuda_sanitizer.py "${parallel[@]}"
part benchmark 200 "$python" -m benchmarks --device cuda --quick --output "$output/benchmark"
sed -n '/ratio/,$p' "$output/benchmark.log"
part tests-cpu 240 "$python" -m pytest tests --ignore=tests/cuda "${parallel[@]}"

sanitizer=$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")
for tool in memcheck racecheck initcheck; do
  part "$tool" 90 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" tests/cuda/sanitizer_run.py
done
exit $failed
