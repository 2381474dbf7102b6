{{/* Names, labels, images. A component is sampler, judge, evaluator, reward, oversight, postgresql, … */}}

{{- define "rlaif.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Prefix of every name; short enough that the longest suffix and a controller's hash stay within 63 characters. */}}
{{- define "rlaif.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "rlaif.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "rlaif.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* (root, component) → name of its objects. */}}
{{- define "rlaif.componentName" -}}
{{- printf "%s-%s" (include "rlaif.fullname" .root) .component -}}
{{- end }}

{{/* (root, component) → what selects its pods; never changes, because selectors cannot. */}}
{{- define "rlaif.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rlaif.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* (root, component) → labels of its pods: nothing that a new chart changes, which would restart them all. */}}
{{- define "rlaif.podLabels" -}}
{{ include "rlaif.selectorLabels" . }}
app.kubernetes.io/part-of: rlaif
{{- end }}

{{/* (root, component) → labels of its objects. */}}
{{- define "rlaif.labels" -}}
{{ include "rlaif.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: rlaif
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* (root, component) → metadata: name, namespace, labels. */}}
{{- define "rlaif.metadata" -}}
name: {{ include "rlaif.componentName" . }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "rlaif.labels" . | nindent 2 }}
{{- end }}

{{/* (root, image, gpu) → reference of one of our images. */}}
{{- define "rlaif.image" -}}
{{- $image := .root.Values.image -}}
{{- $repository := printf "%s/rlaif-%s" $image.registry .image -}}
{{- $suffix := ternary "-gpu" "" (.gpu | default false) -}}
{{- with index $image.digests (printf "%s%s" .image $suffix) -}}
{{- printf "%s@%s" $repository . -}}
{{- else -}}
{{- printf "%s:%s%s" $repository ($image.tag | default .root.Chart.AppVersion) $suffix -}}
{{- end -}}
{{- end }}

{{/* (root) → imagePullSecrets, or nothing. */}}
{{- define "rlaif.pullSecrets" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Name of the service account of pipelines. */}}
{{- define "rlaif.pipelines.serviceAccountName" -}}
{{- $account := .Values.pipelines.serviceAccount -}}
{{- if $account.create -}}
{{- $account.name | default (printf "%s-pipelines" (include "rlaif.fullname" .)) -}}
{{- else -}}
{{- $account.name | default "default" -}}
{{- end -}}
{{- end }}
