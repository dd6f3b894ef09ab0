#!/usr/bin/env bash
# Everything that only a card can tell, in one run: the tests on the card, compute-sanitizer on every kernel, the card beside the simulated
# one, and steps beside PyTorch's. `docs/gpu.md` keeps the last table, with the date and the card.
#
# usage: tests/bench/gpu.sh [OUT]            on a machine with a card, from the root of the project; OUT [default: gpu-out] gets all that was said
#        tests/bench/gpu.sh --pack DIR       on a machine with Rust: puts what a machine without it needs into DIR, stripped
#
# On a machine without Rust, MDLC_PACK names that DIR. PyTorch is taken from $PYTHON [default: python3]; without it, its figures are left out and that
# is said. A part that fails is named at the end, and the others go on.
set -uo pipefail
cd "$(dirname "$0")/../.."

if [ "${1:-}" = --pack ]; then
    dir=${2:?where to}
    mkdir -p "$dir"
    cargo build --release -p mdl-cli -p mdl-simgpu
    target=${CARGO_TARGET_DIR:-target}/release
    cp "$target/mdlc" "$target/libmdl_simgpu.so" "$dir"
    for test in codegen:nests codegen:others codegen:planes runtime:card; do
        package=mdl-${test%%:*} name=${test##*:}
        built=$(cargo test --release -p "$package" --test "$name" --no-run --message-format=json 2>/dev/null |
            sed -n "s/.*\"executable\":\"\([^\"]*\/$name-[^\"]*\)\".*/\1/p" | tail -1)
        cp "$built" "$dir/test-${test%%:*}-$name"
    done
    strip "$dir"/mdlc "$dir"/test-*
    echo "packed into $dir: $(du -sh "$dir" | cut -f1)"
    exit 0
fi

out=${1:-gpu-out}
mkdir -p "$out"
python=${PYTHON:-python3}
mdlc=${MDLC:-${MDLC_PACK:+$MDLC_PACK/mdlc}}
if [ -z "$mdlc" ]; then
    cargo build --release -p mdl-cli -p mdl-simgpu || exit 1
    mdlc=${CARGO_TARGET_DIR:-target}/release/mdlc
fi
failed=()
# A part: its name, and a command whose output is kept and whose last lines are shown.
part() {
    local name=$1
    shift
    echo "== $name"
    if "$@" > "$out/$name.txt" 2>&1; then tail -3 "$out/$name.txt"; else tail -20 "$out/$name.txt"; failed+=("$name"); fi
}

{ date -u; nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader; } | tee "$out/machine.txt"

# ---- the tests, for real
export MDLC_GPU=real MDLC_GPU_ALL=1
if [ -n "${MDLC_PACK:-}" ]; then
    for test in "$MDLC_PACK"/test-*; do part "$(basename "$test")" "$test"; done
else
    part tests cargo test --release -p mdl-codegen -p mdl-runtime
    part end-to-end cargo test --release -p mdl-cli --test end_to_end card
fi
unset MDLC_GPU_ALL

# ---- every kernel of a step under the sanitizer, and the card beside the simulated one
text=$(mktemp)
for _ in $(seq 60); do echo "To be, or not to be, that is the question."; done > "$text"
small() { # OUT PRECISION STEPS
    "${@:4}" "$mdlc" run examples/shakespeare.mdl --text "$text" --device cuda --quiet --out "$1" --precision "$2" --steps "$3" \
        --layers 2 --heads 2 --width 64 --context 64 --batch 4 --dropout 0.1
}
for precision in f32 bf16 f16; do
    for tool in memcheck racecheck initcheck synccheck; do
        if command -v compute-sanitizer > /dev/null; then
            part "sanitizer-$tool-$precision" small "$out/runs/$tool-$precision" $precision 2 compute-sanitizer --tool $tool --error-exitcode 9
        else
            echo "== sanitizer-$tool-$precision: left out, there is no compute-sanitizer"
        fi
    done
    part "card-$precision" small "$out/runs/card-$precision" $precision 6
    part "simulated-$precision" small "$out/runs/sim-$precision" $precision 6 env MDLC_GPU=sim
    echo "   losses on the card, and simulated:"
    paste <(sed -n 's/.*"loss":\([0-9.e-]*\),.*/\1/p' "$out/runs/card-$precision/base/metrics.jsonl") \
        <(sed -n 's/.*"loss":\([0-9.e-]*\),.*/\1/p' "$out/runs/sim-$precision/base/metrics.jsonl") | tee "$out/losses-$precision.txt"
done

# ---- steps beside PyTorch's: tokens/s of the median step, memory, time to the end of the first step
shapes=( # name layers heads width context batch vocab steps
    "gpt2 12 12 768 1024 32 50304 20"
    "gpt-1.5b 48 25 1600 1024 4 50304 10"
    "blocks-7b 8 32 4096 2048 2 32000 10"
)
for shape in "${shapes[@]}"; do
    read -r name layers heads width context batch vocab steps <<< "$shape"
    flags=(--layers "$layers" --heads "$heads" --width "$width" --context "$context" --batch "$batch" --vocab "$vocab" --precision bf16)
    part "mdlc-$name" "$mdlc" run examples/bench.mdl "${flags[@]}" --steps "$steps" --device cuda --json --out "$out/runs/$name"
    part "profile-$name" "$mdlc" profile examples/bench.mdl "${flags[@]}" --device cuda
    for mode in eager compile; do
        part "torch-$mode-$name" "$python" tests/bench/gpu_peer.py "$layers" "$heads" "$width" "$context" "$batch" "$vocab" $mode "$steps"
    done
done
"$python" - "$out" "${shapes[@]}" << 'TABLE' | tee "$out/table.md"
import json, pathlib, statistics, sys
out = pathlib.Path(sys.argv[1])
peak = next((line.split("this machine: ")[1] for line in (out / "profile-gpt2.txt").read_text().splitlines() if "this machine: " in line), "not measured")
print(f"Peaks of this card, by mdlc's own product of 8,192 x 8,192 in bf16 and by copying: {peak}\n")
print("| shape | mdlc tokens/s | PyTorch eager | compile | of eager | of compile | mdlc MiB | eager MiB |\n|---|---|---|---|---|---|---|---|")
for shape in sys.argv[2:]:
    name, _, _, _, context, batch, *_ = shape.split()
    theirs = {}
    for mode in ("eager", "compile"):
        lines = [line for line in (out / f"torch-{mode}-{name}.txt").read_text().splitlines() if line.startswith("{")]
        theirs[mode] = json.loads(lines[-1]) if lines else {}
    metrics = out / "runs" / name / "base" / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    times = [step["step_ms"] for step in steps if "step_ms" in step]
    ours = int(context) * int(batch) / statistics.median(times[len(times) // 4 :]) * 1e3 if times else float("nan")
    mib = max((step.get("peak_bytes", 0) for step in steps), default=0) / 2**20
    rate = {mode: row.get("tokens_per_s", float("nan")) for mode, row in theirs.items()}
    print(f"| {name} | {ours:,.0f} | {rate['eager']:,.0f} | {rate['compile']:,.0f} | {ours / rate['eager']:.2f} | {ours / rate['compile']:.2f} | {mib:,.0f} | {theirs['eager'].get('mib', float('nan')):,.0f} |")
TABLE

if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; what they said is in $out"
    exit 1
fi
echo "all parts passed; what they said is in $out"
