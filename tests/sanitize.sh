#!/usr/bin/env bash
# Runs the tests of the kernels' contract on a copy of the sources whose kernels are compiled with AddressSanitizer
# and UBSan, with more examples than `make test` takes: tests/sanitize.sh PYTHON. Needs g++ with its sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/tests"
cp -r optim csrc setup.py pyproject.toml "$tree"
cp -r tests/optim tests/conftest.py tests/luck.py "$tree/tests"
rm -f "$tree"/optim/adan_optim/*.so
cd "$tree"
"$python" optim/build_kernels.py -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined
# Python leaks by design, and the sanitizers have to be there before it.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
ADAN_EXAMPLES="${ADAN_EXAMPLES:-1500}" PYTHONPATH="$tree:$tree/optim" \
	"$python" -m pytest -q -p no:cacheprovider -p no:xdist tests/optim/test_contract.py
