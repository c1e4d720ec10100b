#!/usr/bin/env bash
# Render the examples in this folder again, from jobs/magistral-text.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
for target in kuberay raycluster cron aws; do
    schedule=()
    if [ "$target" = cron ]; then
        schedule=(--set 'schedule={cron: "0 6 * * *", timezone: Europe/Paris}' --set input.incremental=true)
    fi
    uv run --no-sync magbatch deploy render jobs/magistral-text.yaml --target "$target" --out "deploy/$target" \
        --image registry.example/magbatch:0.2.0-gpu --gpu-memory-gb 80 "${schedule[@]}"
done
