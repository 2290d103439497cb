#!/usr/bin/env bash
# ResNet-56 on CIFAR-10: benchmarks/cifar10.sh ASSETS OUT [more options of tlc compress]
# ASSETS/cifar10 holds resnet56-cifar10.pt, cifar_resnet.py and images.zip. It took 54 minutes on two cores beside other jobs.
set -euo pipefail
assets=$1/cifar10 out=$2
shift 2
exec tlc compress "$assets/resnet56-cifar10.pt" --arch "$assets/cifar_resnet.py:resnet56" --data "$assets/images.zip" \
  --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize none \
  --student depth:5,5,5 --epochs 18 --prune 0.2 --out "$out" "$@"
