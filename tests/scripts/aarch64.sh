#!/usr/bin/env bash
# The other processor, emulated: builds for AArch64, runs the tests of `codegen` there, and trains a few steps there and here.
#
# usage: tests/scripts/aarch64.sh          (Debian: apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user;
#                                           rustup target add aarch64-unknown-linux-gnu)
#
# Elementary functions are written once, so they give the same bits; products add in another order. Losses therefore agree to
# rounding, not to the bit: within 1e-5 over the first steps.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=aarch64-unknown-linux-gnu
for tool in qemu-aarch64 aarch64-linux-gnu-gcc aarch64-linux-gnu-g++; do
    command -v "$tool" >/dev/null || { echo "skipped: there is no $tool here"; exit 0; }
done
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || { echo "skipped: rustup target add $target"; exit 0; }

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++

cargo test --release --target "$target" -p mdl-codegen

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
recipe=(run examples/shakespeare.mdl --steps 6 --layers 2 --heads 2 --width 32 --context 32 --batch 4 --quiet)
cargo run --release -p mdl-cli -- "${recipe[@]}" --out "$out/here"
for precision in f32 bf16; do
    cargo run --release --target "$target" -p mdl-cli -- "${recipe[@]}" --precision "$precision" --out "$out/there-$precision"
done

losses() { sed -n 's/.*"loss":\([0-9.e-]*\),.*/\1/p' "$1/base/metrics.jsonl"; }
paste <(losses "$out/here") <(losses "$out/there-f32") <(losses "$out/there-bf16") | awk '
    { far = ($1 > $2 ? $1 - $2 : $2 - $1) / $1; print "step " NR ": here " $1 ", there " $2 ", in bf16 " $3
      low = ($1 > $3 ? $1 - $3 : $3 - $1) / $1; if (far > 1e-5 || low > 1e-2) bad = 1 }
    END { if (NR != 6 || bad) { print "the losses differ"; exit 1 } }'
