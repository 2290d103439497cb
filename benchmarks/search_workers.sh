#!/usr/bin/env bash
# A search beside one that draws its shapes at random, then two workers of one search, for as long:
#   benchmarks/search_workers.sh OUT URL MINUTES [SEED]
# URL is a PostgreSQL database without these studies. The demo's network and digits, small enough that many students are
# trained; one thread a worker, always two of them on the machine. `search_curve.py` then compares OUT/one.json,
# OUT/random.json, and what the two saw when they ended: OUT/two.json and OUT/second.json.
set -euo pipefail
out=$1 url=$2 minutes=$3 seed=${4:-0}
export OMP_NUM_THREADS=1
mkdir -p "$out"
python - "$out/inputs" <<'PYTHON'
import sys
from pathlib import Path
from tlc.compress.demo import write_demo_inputs
from tlc.compress.events import silent
write_demo_inputs(Path(sys.argv[1]), silent)
PYTHON
worker() { # STUDY NAME [more options]
  tlc search "$out/inputs/model.pt" --arch "$out/inputs/demo_network.py:digits_resnet" --data "$out/inputs/digits.npz" \
    --input 1x20x20 --resize 20x20 --mean 0.3 --std 0.35 --channels gray --set train.batch_size=64 \
    --set train.augment.crop=pad --set train.augment.padding=2 --set train.augment.flip=false --max-drop 1 \
    --storage "$url" --study "$1-$seed" --worker "$2" -o "$out/$1" --seed "$seed" --time-limit "${minutes}min" --json \
    --quiet "${@:3}"
}
worker random first --set search.sampler=random > "$out/random.json" &
worker one first > "$out/one.json"
wait $! # its status too
worker two first > "$out/two.json" &
worker two second > "$out/second.json"
wait $!
python "$(dirname "$0")/search_curve.py" "$out/one.json" "$out/random.json" "$out/two.json" "$out/second.json"
