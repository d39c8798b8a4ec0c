#!/usr/bin/env bash
# infra/lock.sh [UV-OPTION…]: resolve the requirements files again; minutes with a cold cache, and needs a package index.
#
# requirements-dev.txt holds everything at once and is resolved first; each service is then held to the same versions, so
# that what is tested is what runs. `infra/lock.sh --upgrade` takes newer versions, without it pins stay where they can.
# No address is written into a lock: where packages come from is the machine's business.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=".venv/bin/uv"
[ -x "$uv" ] || { echo "error: $uv is missing; run 'make setup' first." >&2; exit 2; }

compile() { # compile OUTPUT INPUT [UV-OPTION…]
    local output=$1 input=$2
    shift 2
    "$uv" pip compile "$input" --output-file "$output" --quiet --python-version 3.11 --universal \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate "$@"
    echo "$output: $(grep -c '==' "$output") packages"
}

shared=$(mktemp)
trap 'rm -f "$shared"' EXIT

compile requirements-dev.txt requirements-dev.in "$@"
for service in training inference tracking; do
    compile "services/$service/requirements.txt" "services/$service/requirements.in" --constraint requirements-dev.txt
done
# The servers of the benchmark live in environments of their own. One wants an older FastAPI: it shares what is measured.
compile benchmarks/serving/requirements.txt benchmarks/serving/requirements.in --constraint requirements-dev.txt "$@"
grep --extended-regexp '^(onnxruntime|onnxruntime-gpu|numpy|pillow|uvicorn|uvloop|httptools)==' requirements-dev.txt |
    sed 's/ *\\$//' > "$shared"
compile benchmarks/serving/requirements-mlserver.txt benchmarks/serving/requirements-mlserver.in --constraint "$shared" "$@"
# Keras and Lightning, which the fit is measured against, on the product's own torch.
compile benchmarks/training/requirements.txt benchmarks/training/requirements.in --constraint requirements-dev.txt "$@"
# The tool that installs the rest is the one thing that pip installs; the same pin, alone.
compile infra/requirements-uv.txt - --constraint requirements-dev.txt <<<uv

if grep --extended-regexp --ignore-case '^(torch|torchvision|mlflow)==' services/inference/requirements.txt; then
    echo "error: the inference lock holds a training package; see services/inference/requirements.in." >&2
    exit 1
fi
