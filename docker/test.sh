#!/usr/bin/env bash
# Builds the images without Docker and runs the commands of docs/docker.md in them: `make test-docker`, as root on Debian.
#
# buildah builds docker/Dockerfile and runs commands in it (--isolation chroot), on a base that debootstrap makes of
# this machine's Debian. Packages come from the same sources as for this machine's apt and pip: their settings, and the
# folders these name, are mounted during the build and are not part of the image. The log goes to
# results/docker/test.log, without this machine's paths and hosts. About half an hour on two cores, 25 GB of disk; the
# images are kept.
#
# `docker/test.sh core` then builds only the image `core` from the existing layers and runs its tests: test-core.log.
set -euo pipefail
cd "$(dirname "$0")/.."

ROW=imagenet/vit_s_150_i
SHORT=(epochs=8 schedule.warmup_epochs=1 schedule.cooldown_epochs=0)
OWNER=1234:1234 # a user unknown to the image and, most likely, to this machine
LOG=results/docker/test${1:+-$1}.log
WORK=$(mktemp -d)
PYTHON=${PYTHON:-python3}
commit=$(git describe --always --dirty --abbrev=40)

fail() {
    echo "error: $*" >&2
    exit 2
}

prepare() {
    [ "$(id -u)" = 0 ] || fail "make test-docker: buildah needs root for --isolation chroot; run it as root"
    command -v apt-get > /dev/null || fail "make test-docker: needs Debian; elsewhere use docker build, see docs/docker.md"
    local missing=()
    for tool in buildah debootstrap; do
        command -v $tool > /dev/null || missing+=("$tool")
    done
    if [ ${#missing[@]} != 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}" > "$WORK/apt.log" 2>&1
    fi
    mkdir -p "$WORK/results" "$WORK/foreign" results/docker
    chown "$OWNER" "$WORK/results"
}

# The settings of this machine's pip as a file, and the folders that they name as mounts.
pip_settings() {
    "$PYTHON" -m pip config list | "$PYTHON" -c '
import ast, os, sys
settings = {}
for line in sys.stdin:  # those of the environment come first and take precedence
    name, _, value = line.strip().partition("=")
    settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
settings.pop("cert", None)
words = " ".join(settings.values()).split()
folders = {word.removeprefix("file://").removesuffix("/simple") for word in words}
for folder in sorted(folder for folder in folders if os.path.isdir(folder)):
    print(f"--volume={folder}:{folder}:ro")
with open(sys.argv[1], "w") as file:
    print("[global]", "cert = /run/certificates.crt", *(f"{k} = {v}" for k, v in settings.items()), sep="\n", file=file)
' "$WORK/pip.conf" > "$WORK/mounts"
    mapfile -t MOUNTS < "$WORK/mounts"
    MOUNTS+=(--volume=/etc/apt:/etc/apt:ro --volume=/etc/ssl/certs/ca-certificates.crt:/run/certificates.crt:ro)
}

# A fresh Debian of this machine's release, equivalent to debian:bookworm-slim.
base() {
    local release mirror
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" | head -n 1)
    debootstrap --variant=minbase "$release" "$WORK/base" "$mirror" > "$WORK/base.log"
    rm -f "$WORK"/base/var/cache/apt/archives/*.deb
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$WORK/base" / > /dev/null
    buildah commit --quiet --rm "$container" adan-base > /dev/null
    rm -rf "$WORK/base"
}

# build NAME TARGET [OPTION...]
build() {
    local name=$1 target=$2 begin=$SECONDS
    shift 2
    echo
    echo "== buildah build --target $target --build-arg BASE=adan-base $*"
    buildah build --isolation chroot --layers --file docker/Dockerfile --target "$target" --tag "$name" \
        --build-arg BASE=adan-base --build-arg COMMIT="$commit" --secret id=pip,src="$WORK/pip.conf" \
        "${MOUNTS[@]}" "$@" . > "$WORK/build.log" 2>&1 || {
        tail -n 30 "$WORK/build.log"
        exit 1
    }
    echo "$name: $(buildah images --format '{{.Size}}' "$name" | head -n 1), in $((SECONDS - begin)) s"
}

# in_image NAME RESULTS WORDS...: the same as `docker run --user OWNER -v RESULTS:/results NAME WORDS...`
in_image() {
    local name=$1 results=$2 container status=0
    shift 2
    container=$(buildah from "$name")
    # buildah skips the entry point and does not forward signals
    # shellcheck disable=SC2016
    buildah run --isolation chroot --hostname localhost --env OMP_NUM_THREADS=1 --user "$OWNER" --volume "$results:/results" "$container" -- sh -c '
        { echo $$ > /results/.process; } 2> /dev/null
        exec tini -s -- python /opt/adan/docker/entrypoint.py "$@"' - "$@" || status=$?
    buildah rm "$container" > /dev/null
    return $status
}

# expect STATUS PATTERN NAME RESULTS WORDS...: runs it, and checks its exit status and its output
expect() {
    local status=$1 pattern=$2 found=0 begin=$SECONDS
    shift 2
    echo
    echo "== $1: ${*:3}"
    in_image "$@" > "$WORK/out" 2>&1 || found=$?
    shown "$WORK/out"
    verdict "exit status $found after $((SECONDS - begin)) s" test "$found" = "$status"
    verdict "says: $pattern" grep -qE -e "$pattern" "$WORK/out"
}

# The end of a command's output, without progress bars and buildah's message about the exit status.
shown() {
    tr '\r' '\n' < "$1" | grep -v -e '^Error: exit' -e '^subprocess exited' -e 'step/s' -e '?step' | tail -n "${2:-12}" || true
}

# verdict WORDS COMMAND...
verdict() {
    local words=$1
    shift
    if "$@" > /dev/null; then
        echo "ok: $words"
    else
        echo "FAILED: $words"
        touch "$WORK/failed"
    fi
}

# Sends SIGTERM to the container's first process once a run has reached its fifth epoch.
stop_in_fifth_epoch() {
    for _ in $(seq 600); do
        sleep 0.5
        if grep -qs '"epoch": 4,' "$1/metrics.jsonl"; then
            kill -TERM "$(cat "$WORK/results/.process")"
            return
        fi
    done
}

one_row() {
    local runs=$WORK/results/runs/vision words=("$ROW" --scale proxy run.name=one)
    stop_in_fifth_epoch "$runs/one" &
    expect 143 'stopped by SIGTERM after step [0-9]+; the same command continues' adan-vision "$WORK/results" "${words[@]}"
    expect 0 'continuing runs/vision/one at step [0-9]+' adan-vision "$WORK/results" "${words[@]}"
    expect 0 'is finished; run.overwrite=true' adan-vision "$WORK/results" "${words[@]}"
    words=("$ROW" --scale proxy --processes 2 "${SHORT[@]}" run.name=several)
    stop_in_fifth_epoch "$runs/several" &
    expect 143 'stopped by SIGTERM after step [0-9]+; the same' adan-vision "$WORK/results" "${words[@]}"
    expect 0 'continuing runs/vision/several at step' adan-vision "$WORK/results" "${words[@]}"
    verdict "the run knows the commit" grep -q "$commit" "$runs/one/environment.json"
    verdict "all results belong to the caller" test -z \
        "$(find "$WORK/results" ! -user "${OWNER%:*}" -o ! -group "${OWNER#*:}")"
}

# The command of compose.yaml, in two containers that reach each other as localhost.
two_containers() {
    local words first=0 second=0
    read -ra words <<< "$(sed -n '/command: >-/,/scale proxy/p' docker/compose.yaml |
        sed -E -e 1d -e 's/first:/localhost:/' -e 's/[$][{]ROW:-(.*)[}]/\1/' | tr '\n' ' ')"
    words+=("${SHORT[@]}" run.name=two)
    echo
    echo "== adan-vision, twice: ${words[*]}"
    in_image adan-vision "$WORK/results" "${words[@]}" > "$WORK/second" 2>&1 &
    in_image adan-vision "$WORK/results" "${words[@]}" > "$WORK/first" 2>&1 || first=$?
    wait $! || second=$?
    shown "$WORK/first" 6
    shown "$WORK/second" 6
    verdict "exit statuses $first and $second" test "$first$second" = 00
    verdict "one run" test -s "$WORK/results/runs/vision/two/summary.json"
}

# The branch of the Dockerfile that builds apex, with a package of that name that has no CUDA in it.
stand_in_for_apex() {
    mkdir -p "$WORK/apex/apex"
    cat > "$WORK/apex/setup.py" << 'END'
from setuptools import setup
setup(name="apex", version="0", packages=["apex"], py_modules=["apex.optimizers"])
END
    touch "$WORK/apex/apex/__init__.py"
    echo 'from torch.optim import Adam as FusedAdam' > "$WORK/apex/apex/optimizers.py"
    git -C "$WORK/apex" init --quiet
    git -C "$WORK/apex" add .
    git -C "$WORK/apex" -c user.name=test -c user.email=test commit --quiet -m stand-in
    build adan-apex core --no-cache --build-arg APEX="$(git -C "$WORK/apex" rev-parse HEAD)" \
        --build-arg APEX_REPOSITORY=/apex --volume="$WORK/apex:/apex:ro"
    expect 0 "lr: 0.5" adan-apex "$WORK/results" python -c 'import adan_optim, torch
print(adan_optim.build_optimizer(torch.nn.Linear(1, 1), "apex.optimizers.FusedAdam", lr=0.5))'
}

heading() {
    echo "docker/test.sh $1: commit $commit, $(nproc) cores of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $(date -u +%F)"
}

run_all() {
    heading all
    buildah inspect --type image adan-base > /dev/null 2>&1 || base
    stand_in_for_apex # must be first: buildah 1.28 loses mounts of cached stages
    build adan-core core
    build adan-vision vision
    expect 0 'What a container does' adan-core "$WORK/results" --help
    expect 0 "$ROW " adan-vision "$WORK/results" list imagenet
    expect 2 'error: listt: .* did you mean list' adan-vision "$WORK/results" listt
    expect 2 'is in the images vision, nlp, llm' adan-core "$WORK/results" list
    expect 2 '/results cannot be written by user 1234.*--user' adan-vision "$WORK/foreign" "$ROW" --scale proxy
    expect 0 'True, 13.*yes' adan-vision "$WORK/results" python -c 'import torch, adan_optim
print(torch.backends.cuda.is_built(), torch.version.cuda, "yes" if "fused (CPU" in
      adan_optim.build_optimizer(torch.nn.Linear(1, 1), "adan").path else "no", sep=", ")'
    one_row
    two_containers
    expect 0 ' passed' adan-core "$WORK/results" test
    conclude
}

run_core() {
    heading core
    build adan-core core
    expect 0 ' passed' adan-core "$WORK/results" test
    conclude
}

conclude() {
    echo
    if [ -e "$WORK/failed" ]; then
        echo "not all of it passed"
        exit 1
    fi
    echo "all of it passed"
}

case ${1:-all} in all | core) ;; *) fail "docker/test.sh $1: there is only core, or nothing for all" ;; esac
trap 'rm -rf "$WORK"' EXIT
prepare
pip_settings
"run_${1:-all}" 2>&1 | sed -u -E -e "s#$WORK#PATH#g" -e 's#(https?|file)://[^ ]+#HOST#g' | tee "$LOG"
