#!/usr/bin/env bash
# A search beside one that draws its shapes at random, then two workers of one search, for as long:
#   benchmarks/search_workers.sh ASSETS OUT URL MINUTES
# URL is a PostgreSQL database without these studies. A tenth of CIFAR-10, one thread a worker, always two of them on the
# machine. `search_curve.py` then compares OUT/one.json, OUT/random.json, and what the two saw when they ended:
# OUT/two.json and OUT/second.json.
set -euo pipefail
assets=$1/cifar10 out=$2 url=$3 minutes=$4
export OMP_NUM_THREADS=1
mkdir -p "$out"
python - "$assets/images.zip" "$out/tenth.zip" <<'PYTHON'
import sys, zipfile
from collections import Counter
seen = Counter()
with zipfile.ZipFile(sys.argv[1]) as source, zipfile.ZipFile(sys.argv[2], "w") as tenth:
    for name in sorted(name for name in source.namelist() if not name.endswith("/")):
        part, label, _file = name.split("/")
        seen[part, label] += 1
        if seen[part, label] <= (500 if part == "train" else 200):
            tenth.writestr(name, source.read(name))
PYTHON
worker() { # STUDY NAME [more options]
  tlc search "$assets/resnet56-cifar10.pt" --arch "$assets/cifar_resnet.py:resnet56" --data "$out/tenth.zip" \
    --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize none --max-drop 3 --storage "$url" --study "$1" \
    --worker "$2" -o "$out/$1" --time-limit "${minutes}min" --json --quiet "${@:3}"
}
worker random first --set search.sampler=random > "$out/random.json" &
worker one first > "$out/one.json"
wait $! # its status too
worker two first > "$out/two.json" &
worker two second > "$out/second.json"
wait $!
python "$(dirname "$0")/search_curve.py" "$out/one.json" "$out/random.json" "$out/two.json" "$out/second.json"
