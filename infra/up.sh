#!/usr/bin/env bash
# infra/up.sh [COMPOSE-OPTION…]: build what changed, bring the stack up and wait until it is ready.
#
# A GPU is taken where Docker has NVIDIA's runtime; STRIDE_GPU=1 insists on it, 0 does without. What was chosen, and why,
# is said. Options stand before `up`: infra/up.sh --profile monitoring, infra/up.sh -f infra/compose.edge.yml.
set -euo pipefail
cd "$(dirname "$0")/.."

# A setting as compose sees it: the environment, else .env, else nothing.
setting() {
    if [ -n "${!1:-}" ]; then printf '%s' "${!1}"
    elif [ -f .env ]; then sed -n "s/^$1=//p" .env | tail -n 1 | tr -d '"'"'"
    fi
}

fail() { echo "error: $1" >&2; exit "${2:-1}"; }

command -v docker >/dev/null || fail "docker was not found; install Docker Engine with the compose plugin."
docker compose version >/dev/null 2>&1 || fail "docker has no compose plugin; install docker-compose-plugin."
docker info >/dev/null 2>&1 || fail "no Docker engine answers; start it, or see whether this user may use it."

images=$(setting STRIDE_IMAGES)
if [ -n "$images" ]; then
    case "$images" in
        /* | ./* | ../*) ;;
        *) fail "STRIDE_IMAGES is '$images'; write a directory as ./$images or with its whole path." 2 ;;
    esac
    [ -d "$images" ] || fail "STRIDE_IMAGES is '$images', which is no directory; give one with a directory a class." 2
fi

keys=$(setting STRIDE_API_KEYS)
if [ -n "$keys" ]; then
    case "$keys" in
        /* | ./* | ../*) ;;
        *) fail "STRIDE_API_KEYS is '$keys'; write a directory as ./$keys or with its whole path." 2 ;;
    esac
    # A file that is mounted by itself would never change in the container: its directory is mounted.
    [ -f "$keys/keys" ] || fail "STRIDE_API_KEYS is '$keys', which holds no file 'keys'; give a directory with one, one key a line." 2
fi

gpu=$(setting STRIDE_GPU)
case "${gpu:-auto}" in
    0) use=no why="STRIDE_GPU is 0" ;;
    1 | auto)
        if ! docker info --format '{{json .Runtimes}}{{json .}}' | grep -Eqi '"nvidia"|nvidia\.com/gpu'; then
            use=no why="Docker has no NVIDIA runtime"
        elif command -v nvidia-smi >/dev/null && ! nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then
            use=no why="Docker has NVIDIA's runtime, but nvidia-smi lists no GPU"
        else
            use=yes why="Docker has NVIDIA's runtime"
        fi
        [ "$use" = yes ] || [ "${gpu:-auto}" = auto ] || fail "STRIDE_GPU is 1, but $why; install it, or set STRIDE_GPU=auto."
        ;;
    *) fail "STRIDE_GPU is '$gpu'; set it to auto, 0 or 1." 2 ;;
esac

files=(-f docker-compose.yml)
[ "$use" = no ] || files+=(-f infra/compose.gpu.yml)
echo "up: on the $([ "$use" = yes ] && echo GPU || echo CPU): $why" >&2

if ! docker compose "${files[@]}" "$@" up --detach --build --wait; then
    docker compose "${files[@]}" "$@" ps --all >&2
    fail "the stack is not ready; 'make logs' says why."
fi
docker compose "${files[@]}" "$@" ps --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}'
