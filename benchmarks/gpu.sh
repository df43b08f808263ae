#!/usr/bin/env bash
# Everything that is to be done on a machine with a GPU, which needs no network:
#
#     benchmarks/gpu.sh FOLDER
#
# builds in place, runs all tests, compute-sanitizer and the CUDA benchmark, the most important
# first, within 580 seconds. FOLDER/summary.txt says how each part ended and which tests failed;
# FOLDER/results.tar.gz, at most 16 MiB, holds the logs, JUnit XML, JSON and plots. Both are brought
# up to date after each part, so that a run that is stopped from outside leaves what it has.
#
# Each part runs even if an earlier one failed, and has a limit of its own: it is interrupted, so
# that it can write what it has found, and killed where that doesn't help. The exit status is 0 if
# everything passed, 1 if something failed, and 3 if nothing did but not everything ran to its end.
#
# PYTHON: the interpreter that has a CUDA torch (default: python3). WHEELS: a folder with wheels of
# Python packages that the machine lacks. TORCH_CUDA_ARCH_LIST: default the first GPU's own.
# TIME: seconds in all, to which the parts' limits are scaled (default: 580).
set -uo pipefail
output=$(mkdir -p "${1:?usage: benchmarks/gpu.sh FOLDER}" && cd "$1" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3} whole=${TIME:-580}
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} PYTHONUNBUFFERED=1 FUSED_OPTIM_CUDA=1
summary=$output/summary.txt
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
: >"$summary"

scaled() { # SECONDS: of a run of 580 seconds, in one of TIME
  local seconds=$(($1 * whole / 580))
  echo $((seconds > 0 ? seconds : 1))
}

failures() { # LOG: the tests that failed; pytest names them as they fail and again at its end
  grep -aoE '(FAILED|ERROR) +tests/[^ ]+|tests/[^ ]+ +(FAILED|ERROR)' "$1" |
    grep -oE 'tests/[^ ]+' | sort -u
}

shorten() { # FILE BYTES: keeps as many, from its beginning and its end
  local size half=$(($2 / 2))
  size=$(stat -c %s "$1")
  [ "$size" -le "$2" ] && return
  { head -c $half "$1" && printf '\n[%s bytes left out]\n' $((size - 2 * half)) && tail -c $half "$1"
  } >"$1.short" && mv "$1.short" "$1"
}

pack() { # the archive, with shorter logs if it would be too large; XML that is cut is of no use
  local bytes file next=$output/.results.tar.gz
  for bytes in 4000000 1000000 200000 50000 10000; do
    find "$work" -name '*.log' | while read -r file; do shorten "$file" $bytes; done
    cp "$summary" "$work" && tar -czf "$next" -C "$work" . && mv "$next" "$output/results.tar.gz"
    [ "$(stat -c %s "$output/results.tar.gz")" -le $((16 << 20)) ] && return
    find "$work" -name '*.xml' -size +$((bytes / 1024))k -delete
  done
}

part() { # NAME SECONDS COMMAND...: runs it into NAME.log, within what is left
  local name=$1 limit grace start=$SECONDS left code=0 status totals log=$work/$1.log
  limit=$(scaled "$2") grace=$(scaled 10)
  left=$((whole - SECONDS - grace - $(scaled 5)))
  shift 2
  if [ $left -lt 1 ]; then
    echo "$name: LEFT OUT, no time" | tee -a "$summary"
    return
  fi
  # A shell in the background has its children ignore interrupts; this one's must not. timeout
  # interrupts its child and then the child's whole group: with a shell between them, the command
  # is interrupted once, and not a second time while it writes what it has found.
  env --default-signal=INT timeout -s INT -k "$grace" $((limit < left ? limit : left)) \
    sh -c 'trap : INT; "$@"; exit $?' sh "$@" >"$log" 2>&1 </dev/null || code=$?
  case $code in
    0) status=passed ;;
    5) status="SKIPPED, nothing to run" ;; # pytest's word for it
    124 | 137) status="CUT OFF" ;;
    *) status="FAILED ($code)" ;;
  esac
  totals=$(grep -aE '[0-9]+ (passed|failed|skipped|error)' "$log" | tail -n 1)
  {
    echo "$name: $status, $((SECONDS - start)) s${totals:+; $totals}"
    failures "$log" | head -n 40 | sed 's/^/  FAILED /'
  } | tee -a "$summary"
  [ $code = 0 ] || tail -n 25 "$log"
}

tests() { # NAME SECONDS ARGUMENTS...: pytest, which names each test as it ends
  part "$1" "$2" "$python" -m pytest -vv -rfE --tb=short -p no:cacheprovider \
    -o faulthandler_timeout="$(scaled 45)" --junitxml="$work/$1.xml" "${@:3}"
  pack
}

benchmark() { # NAME SECONDS ARGUMENTS...
  part "$1" "$2" "$python" -m benchmarks --device cuda --quick --output "$work/$1" "${@:3}"
  sed -n '/ratio/,$p' "$work/$1.log"
  pack
}

sanitize() { # TOOL SECONDS: each allocation by itself, as between those of a pool nothing is seen
  part "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$sanitizer" --tool "$1" --error-exitcode 9 "$python" tests/cuda/sanitizer_run.py
}

on_device() { # NAME...: the CPU's tests on CUDA tensors
  printf 'tests/cuda/test_%s_on_device.py\n' "$@"
}

part gpu 60 "$python" -c 'import torch; print(torch.cuda.get_device_properties(0))'
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
  export TORCH_CUDA_ARCH_LIST
fi
if [ -n "${WHEELS:-}" ]; then
  part wheels 60 "$python" -m pip install --no-index --find-links "$WHEELS" --no-deps "$WHEELS"/*.whl
fi
# torch's list of optimizers and their options, which the tests read, is in a module that imports
# expecttest, and uses nothing of it for that.
if ! "$python" -c 'import expecttest' 2>/dev/null; then
  mkdir "$work/lacking"
  printf 'from unittest import TestCase\n\nACCEPT = False\n' >"$work/lacking/expecttest.py"
  export PYTHONPATH=$work/lacking${PYTHONPATH:+:$PYTHONPATH}
fi
part build 240 "$python" -m pip install --no-build-isolation --no-deps -e .
part info 60 "$python" -m fused_optim info
cat "$work/info.log"
pack

workers=$(nproc) parallel=() # each has a CUDA context of its own
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n $((workers < 8 ? workers : 8)))
tests tests-cuda 100 tests/cuda --ignore-glob '*_on_device.py' --ignore tests/cuda/test_cuda_sanitizer.py

benchmark benchmark 90
benchmark benchmark-half 60 --dtype bfloat16 --dtype float16 \
  --optimizer Adam --optimizer AdamW --optimizer SGD+momentum --workload resnet50 --workload 25M
benchmark benchmark-large 60 --dtype float32 --dtype bfloat16 --dtype float16 --optimizer Adam \
  --workload 1G --workload llama_3_2_1b --workload 3000x3500 --workload embedding
benchmark benchmark-fewer-bytes 40 --optimizer AdamW --workload 25M --workload llama_3_2_1b \
  --master-bits 24 --state-dtype int8 --stochastic-rounding
benchmark benchmark-sharded 40 --sharded --rounds 8 # NCCL, in a world of one

sanitizer=$(command -v compute-sanitizer || echo "$CUDA_HOME/bin/compute-sanitizer")
for tool in memcheck racecheck initcheck; do # side by side: nothing is timed
  sanitize $tool 90 &
done
wait
pack

mapfile -t first < <(on_device equivalence accuracy amp)
mapfile -t second < <(on_device step_options step_option_values clipping skipping zeroing averaging \
  clip_grad state_dict)
mapfile -t third < <(on_device bad_input layouts gradients groups drop_in torch_failures)
tests on-device-1 90 "${first[@]}" "${parallel[@]}"
tests on-device-2 90 "${second[@]}" "${parallel[@]}"
tests on-device-3 90 "${third[@]}" "${parallel[@]}"
tests tests-cpu 240 tests --ignore=tests/cuda "${parallel[@]}"

grep -q FAILED "$summary" && exit 1
grep -qE 'CUT OFF|LEFT OUT|SKIPPED' "$summary" && exit 3
exit 0
