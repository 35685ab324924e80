#!/usr/bin/env bash
# Runs gpu_check.py in the repository's root, on a machine with a GPU and torch, in 9 minutes at most.
# usage: bash benchmarks/gpu_check.sh [WHEELS]      results: $OUT, or benchmarks/results
#
# WHEELS is a folder (default: .whl) with the wheels of ale_py, gymnasium, tyro, tqdm, typeguard,
# docstring_parser, cloudpickle and farama_notifications for that machine's Python, 4 MB, as downloaded by
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d .whl ...
set -o pipefail
here=$(dirname "$0")
export PYTHONUNBUFFERED=1 OUT=${OUT:-$PWD/benchmarks/results}
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "${1:-.whl}"/*.whl || exit
export PYTHONPATH=$site:$PWD:$PWD/benchmarks

# part LIMIT_S PART ...: runs parts with a time limit; if they exceed it, the next call continues.
part() {
    [ "$SECONDS" -lt 500 ] || return
    echo "### ${*:2} ($1 s at most, at $SECONDS s)"
    timeout "$1" python3 "$here/gpu_check.py" --parts "${@:2}" || echo "### exit code $?"
}

{
    part 60 machine gradients
    echo "### tests that need a GPU (at $SECONDS s)"
    timeout 70 python3 -m pytest tests/unit/test_devices.py -q -m gpu -W default -p no:cacheprovider
    part 45 kernels
    part 170 ale
    part 70 profile pictures
    part 80 resume cartpole td3
    part 90 a3c
    python3 "$here/gpu_check.py" --table "$OUT/gpu_check.csv"
    echo "at $SECONDS s"
} 2>&1 | tee "$OUT/gpu_check.log"
