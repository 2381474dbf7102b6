{{/* What the services' YAML files say. */}}

{{/* (root, drainSeconds) → `listen`. Probes read health on a port of its own, which never asks for TLS. */}}
{{- define "rlaif.listen" -}}
address: 0.0.0.0:50051
metrics_address: 0.0.0.0:9090
health_address: 0.0.0.0:50052
drain_seconds: {{ .drainSeconds }}
log_level: {{ .root.Values.logLevel }}
{{- if .root.Values.monitoring.metricsTls }}
metrics_tls: true
{{- end }}
{{- if .root.Values.monitoring.metricsTokenSecret }}
metrics_token: true
{{- end }}
{{- with .root.Values.tls }}
{{- if .enabled }}
tls:
  certificate_path: /run/secrets/rlaif/tls/tls.crt
  key_path: /run/secrets/rlaif/tls/tls.key
  {{- if .clientCertificates }}
  client_ca_path: /run/secrets/rlaif/tls/ca.crt
  {{- end }}
{{- end }}
{{- end }}
{{- if .root.Values.tokens.existingSecret }}
tokens_path: /run/secrets/rlaif/tokens/tokens.yaml
{{- end }}
{{- end }}

{{/* (root, component) → how to call that service: ClientSettings. */}}
{{- define "rlaif.client" -}}
target: dns:///{{ include "rlaif.componentName" . }}:50051
{{- /* A lone replica that restarts keeps its callers waiting, and fails none within their deadlines. */}}
wait_for_ready: true
{{- with .root.Values.tls }}
{{- if .enabled }}
tls_ca_path: /run/secrets/rlaif/tls/ca.crt
{{- if .clientCertificates }}
tls_certificate_path: /run/secrets/rlaif/tls/tls.crt
tls_key_path: /run/secrets/rlaif/tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- if .root.Values.tokens.clientSecret }}
token_path: /run/secrets/rlaif/token/token
{{- end }}
{{- end }}

{{/* (values of sampler or judge) → `engine`. */}}
{{- define "rlaif.engine" -}}
kind: {{ .engine }}
{{- if and (eq .model "playground") (hasKey . "constitutions") }}
{{- /* Small judges lose nothing to bfloat16, and score in two thirds of the time. */}}
dtype: auto
{{- else if gt (int .gpus) 0 }}
dtype: auto
{{- if eq .engine "hf" }}
device: cuda:0
{{- else if gt (int .gpus) 1 }}
vllm: {tensor_parallel_size: {{ .gpus }}}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component, values) → settings of a judge. */}}
{{- define "rlaif.judgeSettings" -}}
listen: {{- include "rlaif.listen" (dict "root" .root "drainSeconds" .values.drainSeconds) | nindent 2 }}
model: {{ .values.model | quote }}
engine: {{- include "rlaif.engine" .values | nindent 2 }}
constitutions:
{{- $files := .root.Values.constitutions }}
{{- range .values.constitutions }}
  - {{ ternary (printf "/etc/rlaif/%s" .) . (hasKey $files .) }}
{{- end }}
ledger: {{- include "rlaif.client" (dict "root" .root "component" "oversight") | nindent 2 }}
{{- if eq .values.model "playground" }}
{{- /* What this small judge was taught: short prompts, critiques and revisions, no rationales. */}}
template: compact
reasoning: null
writing: {temperature: 0}
{{- end }}
{{- end }}

{{/* (root) → whether artifacts lie on the shared volume: "true" or "". */}}
{{- define "rlaif.artifactsOnVolume" -}}
{{- if not (contains "://" .Values.artifacts.root) }}true{{ end -}}
{{- end }}
