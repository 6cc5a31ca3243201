#!/usr/bin/env bash
# Checks and measurements for a first run on a real GPU, the most valuable first:
#
#     SNFNP_DATA_DIR=mnist scripts/gpu_hour.sh runs/gpu-hour [SECONDS]    # MNIST's files
#
# The first lines say what it will take. Every step then prints a line: passed or failed, and its
# figure. The folder has results.txt with these lines (a step whose line is deleted there runs again),
# each step's output, and report.txt: the machine, the lines, the tables and the end of each output,
# to be read without the machine. A step is started only if its limit fits into SECONDS (3600). One
# that is stopped at its limit is not done: the same command starts it again, and training continues
# from its checkpoint. Exit status: 0 all done, 1 a step failed, 3 steps are left.
#
# The checks of memory need compute-sanitizer: that of the CUDA toolkit, or for CUDA 13
# `python -m pip install --no-deps "nvidia-cuda-sanitizer-api>=13.4"`; older ones lack a part.
set -uo pipefail
out=$(mkdir -p "${1:?a folder for the output}" && cd "$1" && pwd) || exit 2
most=${2:-3600} python=${PYTHON:-python} left=() planned=0 count=0
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUPY_CACHE_DIR=$out/kernels
export SNFNP_DEVICE=gpu SNFNP_REQUIRE=device,real_gpu  # no test may be skipped for want of a GPU
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export PATH=$PATH$(printf ':%s' "$packages"/nvidia/*/bin)
touch "$out/results.txt"

is_done() { grep -q "^[a-z]*: $1:" "$out/results.txt"; }

# plan NAME LIMIT …: adds up the limits of what is not done.
plan() {
    is_done "$1" && return
    planned=$((planned + $2)) count=$((count + 1))
}

# run NAME LIMIT PATTERN COMMAND …: its figure is the last match of the pattern in its output.
run() {
    local name=$1 limit=$2 pattern=$3 log="$out/$1.txt" status=passed figure start=$SECONDS
    shift 3
    if is_done "$name"; then return; fi
    if ((SECONDS + limit > most)); then left+=("$name") && return; fi
    timeout --kill-after=20 "$limit" "$@" > "$log" 2>&1 &
    trap 'kill -TERM -- -$!; exit 143' INT TERM  # the step's process group
    wait $!
    case $? in
        0) ;;
        124 | 137) echo "stopped at its limit: $name" && left+=("$name") && return ;;
        *) status=failed ;;
    esac
    figure=$(grep -oE "$pattern" "$log" | tail -n 1)
    # launch by launch the figure would be another one
    if grep -q "cannot be recorded" "$log"; then
        status=failed figure=$(grep -m 1 "cannot be recorded" "$log")
    fi
    figure=${figure:-$(tail -n 1 "$log")}
    echo "$status: $name: $figure ($((SECONDS - start)) s)" | tee -a "$out/results.txt"
    report
}

# The machine, and what has been found: whole outputs of benchmarks and failures, the end of others.
report() {
    {
        date
        git log -1 --format='commit %h, %cd' 2>/dev/null
        uname -srm
        nvidia-smi 2>&1
        "$python" -m pip list 2>/dev/null | grep -iE "^(cupy|nvidia|cuda|numpy|snfnp)"
        cat "$out/results.txt"
        for log in "$out"/*.txt; do
            name=$(basename "$log" .txt)
            case $name in results | report) continue ;; esac
            printf '\n== %s\n' "$name"
            if [[ $name == device* || $name == launches ]] || grep -q "^failed: $name:" "$out/results.txt"
            then tail -n 400 "$log"
            else tail -n 12 "$log"
            fi
        done
    } > "$out/report.txt"
}

script() { step "$1" "$2" "$3" "$python" "scripts/$4.py" "${@:5}" --backend cupy; }
train() {
    script "$1" "$2" "exact test NLL.*" train_mnist "${@:3}" --resume auto --out "$out/runs/$1"
}
tests() { step "$1" "$2" "[0-9]+ (passed|failed).*" "$python" -m pytest -v --tb=short -n 0 "${@:3}"; }
reproduce() {  # an exact evaluation takes as long as some epochs
    script "$1" 540 "^\| .*" reproduce "${@:2}" --eval-every 20 --runs "$out/reproduction"
}
# Some compute-sanitizers start no program at all.
under='
compute-sanitizer "$1" -c "print(\"started\")" 2>&1 | grep -qx started ||
    { compute-sanitizer --version | tail -n 1; echo "this compute-sanitizer starts no program"; exit 1; }
exec compute-sanitizer --tool "$2" --error-exitcode 9 --print-limit 20 "$1" tests/gpu/sanitised.py
'
sanitise() { step "$1" "$2" "ERROR SUMMARY.*" bash -c "$under" sanitise "$python" "$1"; }
same='
import json, sys
def evaluations(folder):
    lines = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]
first, *others = map(evaluations, sys.argv[1:])
assert first and all(own == first for own in others), "the metrics differ"
print(f"{len(first)} evaluations are the same to the last digit")
'

steps() {
    train plain 60 --epochs 2 --eval-every 1
    train no-graph 90 --epochs 2 --eval-every 1 --no-graph
    step same 10 ".*" "$python" -c "$same" "$out"/runs/{plain,no-graph}
    script device-quick 120 ".*(reached|MISSED)" benchmark device --quick
    script launches 120 ".* one by one" benchmark launches --json "$out/launches.json"
    tests graphs 120 tests/gpu/test_graph.py
    train white 120 --model conv --recipe white --epochs 3
    sanitise memcheck 180
    # what follows is less likely to fail, or takes longer
    train float32 60 --model conv --epochs 1 --eval-dtype float32
    train glow 240 --model glow --tf32 --epochs 1 --data mnist-sample
    tests numbers 240 tests/gpu/test_training.py tests/gpu/test_ops.py -k "training or conv or spline"
    script device 150 ".*(reached|MISSED)" benchmark device --json "$out/device.json"
    tests all-tests 540 tests/gpu
    reproduce conv table1 --rows conv-snf --epochs 1000 --seeds 0
    reproduce fc table1 --rows fc-snf --epochs 6000 --seeds 0
    sanitise racecheck 150
    sanitise initcheck 150
    reproduce recipe white --rows conv-white fc-white
    script sweep 150 "^\| .*" reproduce figure4 --runs "$out/reproduction"
    reproduce conv-three-seeds table1 --rows conv-snf --epochs 1000 --seeds 0 1 2
    reproduce fc-three-seeds table1 --rows fc-snf --epochs 6000 --seeds 0 1 2
}
if [ -n "${GPU_HOUR_STEPS:-}" ]; then source "$GPU_HOUR_STEPS"; fi  # other ones, for its tests

step() { plan "$@"; }
steps
echo "$count steps, of at most $planned s in all; this call starts what fits into $most s"
echo "$out/report.txt can be read without this machine"
step() { run "$@"; }
steps
report
if ((${#left[@]})); then echo "left: ${left[*]}: run it again" && exit 3; fi
echo "nothing is left"
! grep -q "^failed" "$out/results.txt"
