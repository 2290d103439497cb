#!/usr/bin/env bash
# SqueezeNet on 245 photographs of ants and bees: benchmarks/ants_bees.sh ASSETS OUT [more options of tlc compress]
# ASSETS/ants-bees holds squeezenet1_0-ants-bees.pt and images.zip. It took 90 seconds on two cores.
set -euo pipefail
assets=$1/ants-bees out=$2
shift 2
exec tlc compress "$assets/squeezenet1_0-ants-bees.pt" --arch torchvision:squeezenet1_0 --data "$assets/images.zip" \
  --out "$out" "$@"
