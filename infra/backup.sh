#!/usr/bin/env bash
# infra/backup.sh FILE: MLflow's data base and artifacts of the running stack as one tar file, readable to its owner.
#
# Runs, metrics, the registry with its champions and every bundle are in it; data sets, caches and secrets are not.
# The data base is dumped first, as of one moment, so that every run in it has its artifacts: those are only ever added.
# A run that is deleted for good (`mlflow gc`) between the two would miss its own.
set -euo pipefail
cd "$(dirname "$0")/.."

file=${1:-}
[ -n "$file" ] || { echo "error: no file was named; run 'make backup FILE=stride.tar'." >&2; exit 2; }
[ ! -e "$file" ] || { echo "error: $file is there already; give another name." >&2; exit 2; }
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work" "$file.part"' EXIT

docker compose exec -T postgres pg_dump --username=mlflow --dbname=mlflow --format=custom > "$work/mlflow.dump"
# tar's exit 1 says that a file grew while it was read: what a run is writing now is of no run that has ended.
# Before the first artifact there is no directory for them.
docker compose exec -T tracking sh -c 'cd "$STRIDE_HOME" && mkdir -p artifacts && { tar --create artifacts || [ $? -eq 1 ]; }' \
    > "$work/artifacts.tar"
docker compose exec -T postgres psql --username=mlflow --dbname=mlflow --tuples-only --no-align \
    --command='SELECT version_num FROM alembic_version' > "$work/schema"
(cd "$work" && sha256sum mlflow.dump artifacts.tar schema > SHA256SUMS)
tar --create --directory="$work" --file="$file.part" SHA256SUMS schema mlflow.dump artifacts.tar
mv "$file.part" "$file"
echo "backup: $file, $(du -h "$file" | cut -f 1), schema $(cat "$work/schema")"
