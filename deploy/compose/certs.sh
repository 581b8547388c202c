#!/bin/bash
# Makes every key of the compose cluster, once: /keys is a volume. For your own cluster, keep the CA's key off its machines.
set -euo pipefail
cd /keys
if [ ! -e done ]; then
  tidegate certs init --dir .
  for node in core-1 core-2 edge-eu edge-us; do
    tidegate certs node "$node" --dir .
  done
  # What clients see: from another CA, since whoever has a certificate of the cluster's is let in as a node.
  tidegate certs init --dir public
  tidegate certs node localhost --dir public --host 127.0.0.1
  for secret in token-secret api-key ticket-keys; do
    head --bytes 32 /dev/urandom | base64 > "$secret"
  done
  # The programs run as another user.
  chown --recursive tidegate:tidegate .
  touch done
fi
