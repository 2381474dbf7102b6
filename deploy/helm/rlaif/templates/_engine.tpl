{{/* What pods that load models need beside their settings: storage, its credentials, a cache. */}}

{{/* (models) → whether one of them is a hub id: "true" or "". */}}
{{- define "rlaif.asksHub" -}}
{{- $hub := "" }}
{{- range .models }}
{{- if not (or (eq . "playground") (hasPrefix "/" .) (contains "://" .)) }}{{ $hub = "true" }}{{ end }}
{{- end }}
{{- $hub }}
{{- end }}

{{/* (root, hub) → environment. Where no model is a hub id nothing asks the hub. */}}
{{- define "rlaif.engineEnv" -}}
{{- $values := .root.Values }}
{{- if .hub }}
{{- with $values.huggingFace.tokenSecret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}
{{- end }}
{{- else }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- if gt (int64 $values.modelCache.maxBytes) 0 }}
- {name: RLAIF_CACHE_MAX_BYTES, value: "{{ int64 $values.modelCache.maxBytes }}"}
{{- end }}
{{- include "rlaif.storeEnv" .root }}
{{- end }}

{{/* Where object storage is, and who we are there. */}}
{{- define "rlaif.storeEnv" -}}
{{- with .Values.artifacts.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- end }}
{{- with .Values.artifacts.region }}
- {name: AWS_DEFAULT_REGION, value: {{ . | quote }}}
{{- end }}
{{- with .Values.artifacts.credentialsSecret }}
{{- $secret := . }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_SESSION_TOKEN" }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ . }}, optional: {{ eq . "AWS_SESSION_TOKEN" }}}}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, writes) → where models are read, and records of what was loaded are written. */}}
{{- define "rlaif.engineMounts" -}}
{{- if .root.Values.runs.enabled }}
- {name: runs, mountPath: /rlaif{{ if not .writes }}, readOnly: true{{ end }}}
{{- end }}
{{- end }}

{{- define "rlaif.engineVolumes" -}}
{{- if .Values.runs.enabled }}
- name: runs
  persistentVolumeClaim: {claimName: {{ include "rlaif.runsClaim" . }}}
{{- end }}
{{- if .Values.modelCache.enabled }}
- name: state
  persistentVolumeClaim: {claimName: {{ include "rlaif.cacheClaim" . }}}
{{- end }}
{{- end }}

{{- define "rlaif.runsClaim" -}}
{{- .Values.runs.existingClaim | default (printf "%s-runs" (include "rlaif.fullname" .)) -}}
{{- end }}

{{- define "rlaif.cacheClaim" -}}
{{- .Values.modelCache.existingClaim | default (printf "%s-model-cache" (include "rlaif.fullname" .)) -}}
{{- end }}
