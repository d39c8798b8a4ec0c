#!/bin/sh
# split-locks.sh: cut {inference,training,tracking}.lock in this directory into the lists of infra/images/Dockerfile.
#
#   cuda.txt       the CUDA libraries that inference needs and training has too (2 GB)
#   torch.txt      torch and the rest of its CUDA libraries (4 GB)
#   training.txt, inference.txt, tracking.txt   what remains of each
#
# An entry of a lock is a line with the pin and the lines with its hashes below.
set -eu

# entries FILE CONDITION: the entries for which the awk condition holds; `name` is the package's.
entries() {
    awk -v names="$3" "BEGIN { split(names, list, \" \"); for (i in list) in_cuda[list[i]] = 1 }
        /^[A-Za-z0-9]/ { name = \$1; sub(/(\\[.*)?==.*/, \"\", name); keep = ($2) } keep" "$1"
}

cuda=$(sed -n 's/^\(nvidia-[a-z0-9-]*\)==.*/\1/p' inference.lock | grep -v '^nvidia-ml-py$' | tr '\n' ' ')
is_torch='name ~ /^(nvidia-|cuda-)/ && name != "nvidia-ml-py" || name ~ /^(torch|torchvision|triton)$/'

# From the lock of training: its markers say which machines have torch on CUDA.
entries training.lock '(name in in_cuda)' "$cuda" > cuda.txt
entries training.lock "!(name in in_cuda) && ($is_torch)" "$cuda" > torch.txt
entries training.lock "!(name in in_cuda) && !($is_torch)" "$cuda" > training.txt
entries inference.lock '!(name in in_cuda)' "$cuda" > inference.txt
entries tracking.lock '1' "$cuda" > tracking.txt

for list in cuda torch training inference tracking; do
    grep -q -e '--hash=sha256:' "$list.txt" || { echo "error: $list.txt is empty; see the locks." >&2; exit 1; }
done
