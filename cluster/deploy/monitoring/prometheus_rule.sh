#!/bin/sh
# The alerts as the Prometheus operator takes them: sh prometheus_rule.sh | kubectl apply -f -
set -eu
cat <<END
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rayscan
  namespace: rayscan
  labels: {release: prometheus} # what your Prometheus selects its rules by
spec:
END
sed 's/^/  /' "$(dirname "$0")/alerts.yaml"
