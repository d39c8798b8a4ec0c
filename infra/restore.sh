#!/usr/bin/env bash
# infra/restore.sh FILE: put a backup of `make backup` into this stack, whose data base must hold no run.
#
# MLflow and what uses it are stopped meanwhile. A backup of an older MLflow is brought to this one's schema afterwards;
# one of a newer MLflow is refused by it.
set -euo pipefail
cd "$(dirname "$0")/.."

file=${1:?usage: infra/restore.sh FILE}
[ -r "$file" ] || { echo "error: $file cannot be read; give a file that 'make backup' wrote." >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar --extract --directory="$work" --file="$file"
(cd "$work" && sha256sum --quiet --check SHA256SUMS) || { echo "error: $file is not whole; take another backup." >&2; exit 1; }

docker compose build --quiet tracking
docker compose up --detach --wait postgres
query() { docker compose exec -T postgres psql --username=mlflow --dbname=mlflow --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }
must_hold_no_run() {
    local runs
    runs=$(query --command="SELECT CASE WHEN to_regclass('runs') IS NULL THEN 0 ELSE 1 END")
    [ "$runs" = 0 ] || runs=$(query --command='SELECT count(*) FROM runs')
    [ "$runs" = 0 ] && return
    echo "error: the data base holds $runs runs, which a restore would replace; restore into a fresh stack ('docker compose down --volumes')." >&2
    exit 2
}
must_hold_no_run  # before anything is stopped: a refused restore disturbs nobody
docker compose stop inference training tracking
must_hold_no_run  # one may have begun until then

query --command='SET client_min_messages = warning' --command='DROP SCHEMA public CASCADE' --command='CREATE SCHEMA public'
docker compose exec -T postgres pg_restore --username=mlflow --dbname=mlflow --no-owner --exit-on-error --single-transaction < "$work/mlflow.dump"
docker compose run --rm --no-deps -T --entrypoint tar tracking --extract --directory=/var/lib/stride < "$work/artifacts.tar"
docker compose run --rm -T migrate
echo "restore: $(query --command='SELECT count(*) FROM runs') runs from $file; 'make up' starts the rest"
