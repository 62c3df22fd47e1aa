#!/usr/bin/env bash
# Fuzzes each parser for some seconds, one after the other: fuzz/run.sh SECONDS [TARGET..]. Needs no nightly toolchain: the
# coverage that libFuzzer asks for is a pass of any LLVM. What ends a target lies in fuzz/artifacts/TARGET, what it learned
# in fuzz/grown/TARGET; the kept inputs in fuzz/corpus are not touched.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?"usage: fuzz/run.sh SECONDS [TARGET..]"}
shift
passes="-Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  passes+=" -Cllvm-args=-sanitizer-coverage-$option"
done
host=$(rustc -vV | sed -n 's/^host: //p')
# A target of its own, so that build scripts are not instrumented.
RUSTFLAGS="$passes --cfg fuzzing" cargo build --release --locked --bins --target "$host"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(ls corpus))
status=0
for target in "${targets[@]}"; do
  mkdir -p "artifacts/$target" "grown/$target"
  echo "== $target"
  nice -n 19 "target/$host/release/$target" "grown/$target" "corpus/$target" -max_total_time="$seconds" -max_len=8192 \
    -rss_limit_mb=2048 -timeout=20 -print_final_stats=1 -artifact_prefix="artifacts/$target/" 2>"artifacts/$target.log" || status=1
  grep -E "^(Done|stat::number_of|SUMMARY|==.*ERROR)|panicked|bytes of memory" "artifacts/$target.log" || true
done
exit $status
