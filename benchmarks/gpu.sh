#!/usr/bin/env bash
# Everything that is measured on one GPU, in at most nine minutes, the most valuable first:
#
#     bash benchmarks/gpu.sh OUT                on a machine with a GPU
#     bash benchmarks/gpu.sh OUT loops sweep    these parts alone, as after a fault
#     bash benchmarks/gpu.sh --rehearse OUT     every line on the CPU with tiny sizes: its figures mean nothing
#
# OUT gets log.txt, gpu.csv, tests.xml and profile.txt, written as it goes: a cut leaves what was measured. Each part has
# a time limit, and what the parts before it left over. While the tests run, the tiles are made and networks compiled for
# the parts behind them. It needs no network and no plugin of Hydra's, and leaves nothing else. Keep OUT/gpu.csv as
# benchmarks/gpu.csv, from which docs/performance.md takes its table ("not measured yet" until then).
#
# PYTHON     the interpreter that has torch, torchvision, lightning, torchmetrics, timm, pytest … (python3)
# WHEELS     a folder of wheels of what that one lacks, unpacked for this run alone; made on a computer with a network by
#            pip wheel --no-deps -w WHEELS hydra-core==1.3.8 omegaconf==2.3.1 antlr4-python3-runtime==4.9.3 \
#                captum platformdirs
#            with hydra-joblib-launcher beside them the sweep is measured through it too
# COMMIT     what is measured, where the copy has no git
set -u
workers=6 # of pytest
limits="tests:100 steps:120 loops:75 whole:105 sweep:95 features:25 profile:20" # seconds, 540 in all
rehearse=
if [ "${1-}" = --rehearse ]; then
  rehearse=--rehearse
  shift
  workers=0
  export OMP_NUM_THREADS=1 # two threads for batches this small are slower, the more so on a busy machine
  limits="tests:600 steps:600 loops:600 whole:600 sweep:1800 features:600 profile:600"
fi
if [ $# -eq 0 ]; then
  echo "usage: bash benchmarks/gpu.sh [--rehearse] OUT [PART …]" >&2
  exit 2
fi
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
shift
parts=${*:-tests steps loops whole sweep features profile}
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
COMMIT=${COMMIT:-$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)}
export COMMIT

if [ -n "${WHEELS-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" "$WHEELS"/*.whl || exit 2
fi
if ! "$python" -c 'import importlib.metadata as m; m.version("histolight")' 2>/dev/null; then # a run records its version
  mkdir -p "$scratch/site/histolight-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: histolight\nVersion: 0\n' >"$scratch/site/histolight-0.dist-info/METADATA"
fi
export PYTHONPATH="$root:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"

measure() { # part, seconds
  timeout -k 5 "$2" "$python" "$root/benchmarks/gpu.py" "$1" "$out" "$scratch" $rehearse
}

run_tests() { # without the doctests of modules that need packages which this machine may lack
  cd "$root" || return 2
  measure ready "$1" &
  local ready=$!
  # Interrupted, also where this script runs in the background, pytest writes what it has seen. A test a worker at a time:
  # a few take as long as all the others.
  # shellcheck disable=SC2046
  timeout -s INT -k 10 "$1" env --default-signal=INT "$python" -m pytest -o addopts= -o cache_dir="$scratch/pytest" \
    --import-mode=importlib -ra -v --durations=5 -n "$workers" --maxschedchunk=1 -m gpu --junitxml="$out/tests.xml" \
    $(grep -rl 'pytest\.mark\.gpu' tests --include='test_*.py')
  local status=$?
  [ -f "$out/tests.xml" ] && "$python" benchmarks/gpu.py tests "$out" "$scratch" $rehearse
  wait "$ready" || echo "== ready ended with status $?"
  return $status
}

run_part() { # part, seconds
  case $1 in
    tests) run_tests "$2" ;;
    profile)
      measure profile "$2" >"$out/profile.txt" 2>&1
      local status=$?
      head -n 40 "$out/profile.txt"
      return $status
      ;;
    *) measure "$1" "$2" ;;
  esac
}

worst=0
end=0
SECONDS=0
for item in $limits; do
  part=${item%:*} begun=$SECONDS
  [[ " $parts " == *" $part "* ]] || continue
  end=$((end + ${item#*:}))
  echo "== $part, at most $((end - begun)) s, begun after $begun s"
  run_part "$part" $((end - begun))
  status=$?
  echo "== $part ended with status $status after $((SECONDS - begun)) s"
  [ $status -ne 0 ] && worst=1
done > >(tee -a "$out/log.txt") 2>&1
wait
exit $worst
