#!/usr/bin/env bash
# infra/kubernetes/secrets.sh [KUBECTL-OPTION…]: make the namespace `stride` and those of its Secrets that are missing.
#
# Each gets one random value, which stands on no command line and in no file here; those that exist stay. To see one:
#   kubectl --namespace stride get secret inference --output jsonpath='{.data.keys}' | base64 --decode
#
#   postgres    the password of MLflow's data base      training    API keys of the training service
#   ray         what Ray's head asks for                inference   API keys of inference
#   metrics     opens /metrics of both, for Prometheus
set -euo pipefail
cd "$(dirname "$0")"

command -v kubectl >/dev/null || { echo "error: kubectl was not found; install it, or put it on PATH." >&2; exit 1; }
kubectl "$@" apply --filename base/namespace.yaml
ours=(kubectl "$@" --namespace stride)

make() { # make NAME FILE
    if [ -n "$("${ours[@]}" get secret "$1" --ignore-not-found --output name)" ]; then
        echo "secret/$1 is there"
    else
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' | "${ours[@]}" create secret generic "$1" --from-file="$2=/dev/stdin"
    fi
}

make postgres password
make training keys
make inference keys
make metrics keys
make ray auth_token
