#!/usr/bin/env bash
# A six-layer BERT on film reviews: benchmarks/movie_sentiment.sh ASSETS OUT [more options of tlc compress]
# ASSETS/movie-sentiment holds model/ (a Hugging Face folder), train.csv, val.csv and test.csv.
set -euo pipefail
assets=$1/movie-sentiment out=$2
shift 2
exec tlc compress "$assets/model" --data "$assets" --out "$out" "$@"
