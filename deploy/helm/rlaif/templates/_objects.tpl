{{/* What every service has beside its pods. */}}

{{- define "rlaif.serviceAccount" -}}
{{- $pod := include "rlaif.podValues" . | fromYaml }}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "rlaif.metadata" . | nindent 2 }}
  {{- with $pod.serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}

{{/* (…, config, files) → ConfigMap with the YAML file of the service and what lies beside it. */}}
{{- define "rlaif.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
data:
  {{ .component }}.yaml: |
    {{- .config | nindent 4 }}
  {{- range $name, $text := .files }}
  {{ $name }}: {{ $text | quote }}
  {{- end }}
{{- end }}

{{/* Headless: clients learn every replica's address and spread their calls themselves (round_robin). */}}
{{- define "rlaif.service" -}}
apiVersion: v1
kind: Service
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  selector: {{- include "rlaif.selectorLabels" . | nindent 4 }}
  ports:
    - name: grpc
      port: 50051
      targetPort: grpc
      {{- if not .root.Values.tls.enabled }}
      appProtocol: kubernetes.io/h2c
      {{- end }}
    - {name: metrics, port: 9090, targetPort: metrics}
{{- end }}

{{/* One pod at a time; a pod that is not ready may always go. */}}
{{- define "rlaif.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "rlaif.selectorLabels" . | nindent 6 }}
{{- end }}

{{/* (…, calls, ports) → NetworkPolicy. `calls` are components it calls, `ports` are reached anywhere. Pods of the chart
and of its trainings call each other, whoever else may.

Probes need no rule: a node always reaches its own pods. */}}
{{- define "rlaif.networkPolicy" -}}
{{- $root := .root }}
{{- $policy := $root.Values.networkPolicy }}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels: {{- include "rlaif.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector:
            matchLabels: {app.kubernetes.io/instance: {{ $root.Release.Name }}, app.kubernetes.io/part-of: rlaif}
        - podSelector:
            matchLabels: {app.kubernetes.io/part-of: rlaif, app.kubernetes.io/component: training}
        {{- with $policy.callers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports: [{port: 50051, protocol: TCP}]
    {{- with $policy.monitoring }}
    - from: {{- toYaml . | nindent 8 }}
      ports: [{port: 9090, protocol: TCP}]
    {{- end }}
  egress:
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    {{- range .calls }}
    - to:
        - podSelector:
            matchLabels: {{- include "rlaif.selectorLabels" (dict "root" $root "component" .component) | nindent 14 }}
      ports: [{port: {{ .port }}, protocol: TCP}]
    {{- end }}
    {{- with .ports }}
    - ports:
      {{- range . }}
        - {port: {{ . }}, protocol: TCP}
      {{- end }}
    {{- end }}
{{- end }}

{{/* (…, values, metric) → what scales the Deployment by its queue, or nothing. */}}
{{- define "rlaif.autoscaler" -}}
{{- $scaling := .values.autoscaling }}
{{- $name := include "rlaif.componentName" . }}
{{- if eq $scaling.kind "hpa" }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  minReplicas: {{ $scaling.minReplicas }}
  maxReplicas: {{ $scaling.maxReplicas }}
  metrics:
    - type: Pods
      pods:
        metric: {name: {{ .metric }}}
        target: {type: AverageValue, averageValue: {{ $scaling.queuePerReplica | quote }}}
  behavior:
    # Weights take minutes to load: what was started is kept for a while.
    scaleDown: {stabilizationWindowSeconds: 600}
{{- else if eq $scaling.kind "keda" }}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {name: {{ $name }}}
  minReplicaCount: {{ $scaling.minReplicas }}
  maxReplicaCount: {{ $scaling.maxReplicas }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        # Weights take minutes to load: what was started is kept for a while.
        scaleDown: {stabilizationWindowSeconds: 600}
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ .root.Values.monitoring.prometheusUrl | quote }}
        query: sum({{ .metric }}{namespace="{{ .root.Release.Namespace }}",service="{{ $name }}"})
        threshold: {{ $scaling.queuePerReplica | quote }}
{{- end }}
{{- end }}

{{- define "rlaif.serviceMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "rlaif.componentName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- mergeOverwrite (deepCopy .root.Values.monitoring.labels) (include "rlaif.labels" . | fromYaml) | toYaml | nindent 4 }}
spec:
  selector:
    matchLabels: {{- include "rlaif.selectorLabels" . | nindent 6 }}
  endpoints:
    - port: metrics
      path: /metrics
      interval: {{ .root.Values.monitoring.serviceMonitor.interval }}
      # Rules and dashboards know services by this, whatever the release is called.
      relabelings: [{targetLabel: job, replacement: rlaif-{{ .component }}}]
      {{- if .root.Values.monitoring.metricsTls }}
      scheme: https
      tlsConfig:
        serverName: {{ include "rlaif.componentName" . }}
        ca: {secret: {name: {{ .root.Values.tls.existingSecret }}, key: ca.crt}}
      {{- end }}
      {{- with .root.Values.monitoring.metricsTokenSecret }}
      authorization: {credentials: {name: {{ . }}, key: token}}
      {{- end }}
{{- end }}

{{/* All of it, for one service. */}}
{{- define "rlaif.objects" -}}
{{ include "rlaif.serviceAccount" . }}
---
{{ include "rlaif.configMap" . }}
---
{{ include "rlaif.service" . }}
---
{{ include "rlaif.deployment" . }}
---
{{ include "rlaif.disruptionBudget" . }}
{{- if .root.Values.networkPolicy.enabled }}
---
{{ include "rlaif.networkPolicy" . }}
{{- end }}
{{- if and .metric (ne .values.autoscaling.kind "none") }}
---
{{ include "rlaif.autoscaler" . }}
{{- end }}
{{- if .root.Values.monitoring.serviceMonitor.enabled }}
---
{{ include "rlaif.serviceMonitor" . }}
{{- end }}
{{- end }}
