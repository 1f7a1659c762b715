#!/bin/sh
# The CPU kernels on 64-bit ARM, with NEON and with SVE, under emulation: every rule and every way of keeping tensors
# gives the bits of this x86-64 machine (tests/same_bits.cpp). Writes the log; shows nothing about speed.
# Usage: tests/arm64.sh LOG, with what `apt-get install g++-aarch64-linux-gnu qemu-user` installs.
set -eu
log=$1
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
rules=$(sed -n 's/^EXPORT_RULE(\(.*\))$/RULE(\1)/p' "$root/csrc/cpu.cpp" | tr '\n' ' ')

build() {  # COMPILER NAME
  "$1" -shared -fPIC -std=c++17 -O3 -g0 -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=off \
    "$root/csrc/cpu.cpp" -o "$folder/$2.so"
  "$1" -std=c++17 -O1 -ffp-contract=off -fopenmp "-DRULES=$rules" -I"$root/csrc" "$root/tests/same_bits.cpp" \
    -o "$folder/$2" -Wl,--no-as-needed -lgomp -ldl
}

build g++ x86_64
build aarch64-linux-gnu-g++ aarch64
"$folder/x86_64" "$folder/x86_64.so" 1 > "$folder/expected" 2> "$folder/on"
{
  echo "# Written by make test-arm: hashes of what the kernels wrote, for every rule, dtype and storage; sizes"
  grep '^constexpr int64_t kSizes' "$root/tests/same_bits.cpp" | sed 's/.*{\(.*\)}.*/# \1/'
  aarch64-linux-gnu-g++ --version | sed -n '1s/^/# /p'
  qemu-aarch64 --version | sed -n '1s/^/# /p'
} > "$folder/log"
failed=0
for run in "max,sve256=on 1" "cortex-a57 1" "cortex-a57 2"; do
  set -- $run
  qemu-aarch64 -cpu "$1" -L /usr/aarch64-linux-gnu "$folder/aarch64" "$folder/aarch64.so" "$2" \
    > "$folder/found" 2> "$folder/emulated"
  cases=$(wc -l < "$folder/expected")
  different=$(diff "$folder/expected" "$folder/found" | grep -c '^>' || true)
  echo "# -cpu $1, $2 thread(s), $(head -1 "$folder/emulated"): $((cases - different)) of $cases lines are those of" \
    "$(head -1 "$folder/on")" >> "$folder/log"
  cmp -s "$folder/expected" "$folder/found" || failed=1
done
grep '^# -cpu' "$folder/log"
cat "$folder/expected" >> "$folder/log"
mkdir -p "$(dirname "$log")"
cp "$folder/log" "$log"
exit $failed
