#!/usr/bin/env bash
# Fuzzes each parser, one after the other, for so many seconds of a processor or 10 million runs (RECANT_RUNS sets another
# number), whichever comes first: fuzz/run.sh SECONDS [TARGET..]. Needs no nightly toolchain: the coverage that libFuzzer asks
# for is a pass of any LLVM. What ends a target lies in fuzz/artifacts/TARGET, what it learned in fuzz/grown/TARGET; the kept
# inputs in fuzz/corpus are not touched. The last line of each target is a row of the table in docs/reliability.md.
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
TIMEFORMAT="%U %S"
status=0
for target in "${targets[@]}"; do
  mkdir -p "artifacts/$target" "grown/$target"
  log="artifacts/$target.log"
  spent=0 runs=0 fault=
  # libFuzzer's clock is the wall's, and a process may stand still; so it is asked again for what is left.
  while [ -z "$fault" ] && [ "$spent" -lt "$seconds" ] && [ "$runs" -lt "${RECANT_RUNS:=10000000}" ]; do
    # No unit ends a target for its time by the wall; a slow one is kept, to be played back.
    { time nice -n 19 "target/$host/release/$target" "grown/$target" "corpus/$target" -max_total_time=$((seconds - spent)) \
      -runs=$((RECANT_RUNS - runs)) -max_len=8192 -rss_limit_mb=2048 -timeout=1000 -report_slow_units=20 \
      -print_final_stats=1 -artifact_prefix="artifacts/$target/" 2>"$log" || fault=yes; } 2>"$log.time"
    spent=$((spent + $(awk '{ print int($1 + $2 + 1) }' "$log.time")))
    runs=$((runs + $(sed -n 's/^stat::number_of_executed_units: //p' "$log" | grep . || echo 0)))
    grep -E "^(SUMMARY|Slowest unit|==.*ERROR)|panicked|bytes of memory" "$log" || true
  done
  [ -z "$fault" ] || status=1
  edges=$(grep -o "cov: [0-9]*" "$log" | tail -1 | cut -c6- || true)
  echo "| \`$target\` | $(date +%F) | $spent | $runs | $edges |${fault:+ ended by a fault}"
done
exit $status
