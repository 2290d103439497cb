#!/usr/bin/env bash
# Give each parser of tlc-run broken files for MINUTES, under the address and undefined-behaviour sanitizers:
#   benchmarks/fuzz.sh MINUTES [TARGET ...]        TARGET: image json manifest npy plan zip; all of them by default
# With clang++ on the path libFuzzer looks for inputs that reach new code; else g++ and the tests' own driver change the
# committed files blindly. BUILD names another build folder, FOUND where inputs that reached new code are kept, so that
# a second run goes on where the first one ended. Prints one row a target; exits with 1 where one crashed.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${1:?usage: benchmarks/fuzz.sh MINUTES [TARGET ...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(image json manifest npy plan zip)
build=${BUILD:-build/fuzz}
found=${FOUND:-$build/found}
seconds=$(python3 -c 'import sys; print(round(float(sys.argv[1]) * 60))' "$minutes")

if command -v clang++ > /dev/null; then
  engine=libFuzzer
  options=(-DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DTLC_FUZZ=ON)
else
  engine=blind
  options=(-DTLC_FUZZ=OFF)
fi
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DTLC_SANITIZE=address,undefined "${options[@]}" >&2
cmake --build "$build" --parallel 2 --target "${targets[@]/#/tlc_fuzz_}" >&2

status=0
printf '| target | engine | seconds | inputs | inputs that reached new code | end |\n|---|---|---:|---:|---:|---|\n'
for target in "${targets[@]}"; do
  folder=$found/$target
  mkdir -p "$folder"
  log=$found/$target.log
  program=$(realpath "$build")/tlc_fuzz_$target
  corpus=$PWD/tests/native/corpus/$target
  started=$SECONDS
  if [ $engine = libFuzzer ]; then
    (cd "$found" && "$program" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=60 -print_final_stats=1 \
      -artifact_prefix="$target-" "$target" "$corpus") > "$log" 2>&1 && end='no crash' || end="crashed: $log"
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    new=$(sed -n 's/^stat::new_units_added: *//p' "$log")
  else
    (cd "$folder" && "$program" "$corpus" "$seconds" "$RANDOM") > "$log" 2>&1 && end='no crash' || end="crashed: $log"
    inputs=$(sed -n 's/^.* files and \([0-9]*\) changed ones.*/\1/p' "$log")
    new=-
  fi
  [ "$end" = 'no crash' ] || status=1
  printf '| %s | %s | %d | %s | %s | %s |\n' "$target" "$engine" $((SECONDS - started)) "${inputs:--}" "${new:--}" "$end"
done
exit $status
