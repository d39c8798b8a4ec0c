#!/usr/bin/env bash
# infra/clean.sh [1]: remove all that Stride made here: .venv and caches, .stride with every run and model, and the stack
# in Docker with its containers, volumes and networks. Images and downloads of data sets elsewhere stay.
#
# It says first what goes and how large it is. On a terminal it asks; without one it does nothing unless it is given 1
# (`make clean YES=1`), so that no script loses a model by accident.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $1" >&2; exit 2; }

case "${1:-}" in
    '' | 1) ;;
    *) fail "YES is '$1'; set it to 1, or leave it out to be asked." ;;
esac

paths=()
for path in .stride .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info; do
    [ ! -e "$path" ] || paths+=("$path")
done

# The stack is told by its project's label, so that what an earlier compose file named is found, too.
project="" containers="" volumes="" networks="" unseen=""
if command -v docker > /dev/null && docker compose version > /dev/null 2>&1; then
    if docker info > /dev/null 2>&1; then
        project=$(docker compose config 2> /dev/null | sed -n 's/^name: //p')
        [ -n "$project" ] || fail "docker compose cannot read its files here; 'docker compose config' says why."
        label="label=com.docker.compose.project=$project"
        containers=$(docker ps --all --quiet --filter "$label")
        volumes=$(docker volume ls --quiet --filter "$label")
        networks=$(docker network ls --quiet --filter "$label")
        # Another checkout's stack has the same name.
        here=$(pwd -P)
        where='{{.Label "com.docker.compose.project.working_dir"}}'
        while read -r elsewhere; do
            [ ! -d "$elsewhere" ] || [ "$(cd "$elsewhere" && pwd -P)" = "$here" ] ||
                fail "nothing was removed: the stack '$project' was brought up in $elsewhere; run 'make clean' there."
        done < <(docker ps --all --filter "$label" --format "$where" | sort --unique)
    else
        unseen="no Docker engine answers: if the stack was ever brought up here, its volumes stay."
    fi
fi

[ -z "$unseen" ] || echo "clean: $unseen" >&2
if [ ${#paths[@]} -eq 0 ] && [ -z "$containers$volumes$networks" ]; then
    echo "clean: there is nothing to remove"
    exit 0
fi

{
    echo "This goes, and cannot be brought back:"
    for path in ${paths[@]+"${paths[@]}"}; do
        printf '  %8s  %s%s\n' "$(du -sh "$path" | cut -f 1)" "$path" \
            "$([ "$path" != .stride ] || echo ': every run, model and job of make demo and of the stride command')"
    done
    if [ -n "$containers$volumes$networks" ]; then
        count() { printf '%s' "$1" | grep -c . || true; }
        echo "  the stack '$project' in Docker: $(count "$containers") containers, $(count "$networks") networks and the volumes"
        sizes=$(docker system df --verbose --format '{{range .Volumes}}{{.Name}} {{.Size}}{{println}}{{end}}' 2> /dev/null || true)
        for volume in $volumes; do
            size=$(printf '%s\n' "$sizes" | awk -v name="$volume" '$1 == name { print $2 }')
            printf '  %8s  %s\n' "${size:-?}" "$volume"
        done
    fi
    echo "'make backup' first keeps MLflow's runs and models of the stack; images stay ('docker image rm' removes them)."
} >&2

if [ "${1:-}" != 1 ]; then
    [ -t 0 ] || fail "nothing was removed: there is no terminal to ask on; 'make clean YES=1' removes it unasked."
    read -r -p "Remove it? Type yes: " answer || answer=""
    if [ "$answer" != yes ]; then
        echo "clean: nothing was removed" >&2
        exit 2
    fi
fi

if [ -x .venv/bin/stride ] && ! .venv/bin/stride stop; then
    fail "nothing was removed: the servers of this checkout could not be stopped (above); end them first."
fi
if [ -n "$containers$volumes$networks" ]; then
    docker compose --profile '*' down --volumes --remove-orphans --timeout 20
    # Of an earlier compose file, which named others.
    left=$(docker volume ls --quiet --filter "$label")
    [ -z "$left" ] || docker volume rm $left > /dev/null
fi
[ ${#paths[@]} -eq 0 ] || rm -rf "${paths[@]}"
echo "clean: done"
