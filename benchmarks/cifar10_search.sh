#!/usr/bin/env bash
# The student that a budget asks for, of a ResNet-56 on CIFAR-10: benchmarks/cifar10_search.sh ASSETS OUT [more options]
# ASSETS is as for cifar10.sh. More options: --max-drop 0.3, --time-limit 60min, --set search.sampler=random.
set -euo pipefail
assets=$1/cifar10 out=$2
shift 2
exec tlc compress "$assets/resnet56-cifar10.pt" --arch "$assets/cifar_resnet.py:resnet56" --data "$assets/images.zip" \
  --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize none --max-drop 1 --time-limit 100min --out "$out" "$@"
