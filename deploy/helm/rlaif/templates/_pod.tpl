{{/* The pod of a service. */}}

{{- define "rlaif.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
fsGroup: {{ .user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rlaif.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* (root, values) → the pod settings of all, with those of one service on top. */}}
{{- define "rlaif.podValues" -}}
{{- mergeOverwrite (deepCopy .root.Values.pod) (deepCopy .values.pod) | toYaml -}}
{{- end }}

{{/* (root, component, pod) → where pods of the component run. */}}
{{- define "rlaif.placement" -}}
{{- $selector := include "rlaif.selectorLabels" . | fromYaml }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
  - {{- merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" $selector) "matchLabelKeys" (list "pod-template-hash")) | toYaml | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component, values, config, files, module, health, image, client, env, mounts, volumes, initContainers) → Deployment.

`config` is the YAML file's content, `files` are others beside it; `client` says whether it calls other services. */}}
{{- define "rlaif.deployment" -}}
{{- $root := .root }}
{{- $values := .values }}
{{- $pod := include "rlaif.podValues" . | fromYaml }}
{{- $gpus := int ($values.gpus | default 0) }}
{{- $gpu := $root.Values.gpu }}
{{- $secrets := dict "root" $root "server" true "client" .client }}
{{- $autoscaling := dig "autoscaling" "kind" "none" $values }}
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "rlaif.metadata" . | nindent 2 }}
spec:
  {{- if eq $autoscaling "none" }}
  replicas: {{ $values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  progressDeadlineSeconds: {{ add $values.startSeconds 600 }}
  strategy:
    type: RollingUpdate
    rollingUpdate: {{- toYaml $values.rollout | nindent 6 }}
  selector:
    matchLabels: {{- include "rlaif.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels: {{- mergeOverwrite (deepCopy $pod.labels) (include "rlaif.podLabels" . | fromYaml) | toYaml | nindent 8 }}
      annotations: {{- mergeOverwrite (deepCopy $pod.annotations) (dict "checksum/settings" (printf "%s%s" .config (.files | default dict | toJson) | sha256sum)) | toYaml | nindent 8 }}
    spec:
      serviceAccountName: {{ include "rlaif.componentName" . }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add $values.drainSeconds 15 }}
      {{- with include "rlaif.pullSecrets" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      securityContext: {{- include "rlaif.podSecurity" (dict "user" 65532) | nindent 8 }}
      {{- $runtimeClass := $pod.runtimeClassName | default (ternary $gpu.runtimeClassName "" (gt $gpus 0)) }}
      {{- $tolerations := concat $pod.tolerations (ternary $gpu.tolerations list (gt $gpus 0)) }}
      {{- with include "rlaif.placement" (dict "root" $root "component" .component "pod" $pod "runtimeClassName" $runtimeClass "tolerations" $tolerations) | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .initContainers }}
      initContainers: {{- . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "rlaif.image" (dict "root" $root "image" .image "gpu" (gt $gpus 0)) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [python, -m, {{ .module }}]
          args: [--config, /etc/rlaif/{{ .component }}.yaml]
          ports:
            - {name: grpc, containerPort: 50051}
            - {name: health, containerPort: 50052}
            - {name: metrics, containerPort: 9090}
          env:
            - {name: HOME, value: /var/lib/rlaif}
            - name: OMP_NUM_THREADS
              valueFrom: {resourceFieldRef: {containerName: {{ .component }}, resource: limits.cpu}}
            {{- with .env }}
            {{- trim . | nindent 12 }}
            {{- end }}
            {{- with $pod.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- with $pod.extraEnvFrom }}
          envFrom: {{- toYaml . | nindent 12 }}
          {{- end }}
          # Loading weights takes what it takes; after that, ready says "send calls", live says "do not restart".
          startupProbe:
            grpc: {port: 50052, service: {{ .health }}}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: {{ max 1 (div (int $values.startSeconds) 5) }}
          readinessProbe:
            grpc: {port: 50052, service: {{ .health }}}
            periodSeconds: 5
            timeoutSeconds: 2
            failureThreshold: 2
          livenessProbe:
            grpc: {port: 50052, service: liveness}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          resources: {{- include "rlaif.resources" (dict "values" $values "gpu" $gpu) | nindent 12 }}
          securityContext: {{- include "rlaif.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: settings, mountPath: /etc/rlaif, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            - {name: state, mountPath: /var/lib/rlaif}
            {{- with include "rlaif.secretMounts" $secrets | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with .mounts }}
            {{- trim . | nindent 12 }}
            {{- end }}
            {{- if gt $gpus 1 }}
            - {name: shm, mountPath: /dev/shm}
            {{- end }}
            {{- with $pod.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: settings
          configMap: {name: {{ include "rlaif.componentName" . }}}
        - name: tmp
          emptyDir: {}
        {{- if not (contains "name: state" (.volumes | default "")) }}
        - name: state
          emptyDir: {}
        {{- end }}
        {{- with include "rlaif.secretVolumes" $secrets | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .volumes }}
        {{- trim . | nindent 8 }}
        {{- end }}
        {{- if gt $gpus 1 }}
        # GPUs of one pod exchange tensors through shared memory.
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: 8Gi}
        {{- end }}
        {{- with $pod.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
{{- end }}

{{/* (values, gpu) → resources, GPUs included. */}}
{{- define "rlaif.resources" -}}
{{- $resources := deepCopy .values.resources }}
{{- $gpus := int (.values.gpus | default 0) }}
{{- if gt $gpus 0 }}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .gpu.resource $gpus) "requests" (dict .gpu.resource $gpus)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* (root, server, client) → volumes of who serves and who calls. Whole folders, so that a rotated Secret arrives. */}}
{{- define "rlaif.secretVolumes" -}}
{{- $values := .root.Values }}
{{- if and $values.tls.enabled (or .server .client) }}
- name: tls
  secret:
    secretName: {{ $values.tls.existingSecret }}
    defaultMode: 0440
    {{- if not (or .server $values.tls.clientCertificates) }}
    items: [{key: ca.crt, path: ca.crt}]
    {{- end }}
{{- end }}
{{- if and .server $values.tokens.existingSecret }}
- name: tokens
  secret: {secretName: {{ $values.tokens.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- if and .client $values.tokens.clientSecret }}
- name: token
  secret: {secretName: {{ $values.tokens.clientSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* (root, server, client) → where they are mounted. */}}
{{- define "rlaif.secretMounts" -}}
{{- $values := .root.Values }}
{{- if and $values.tls.enabled (or .server .client) }}
- {name: tls, mountPath: /run/secrets/rlaif/tls, readOnly: true}
{{- end }}
{{- if and .server $values.tokens.existingSecret }}
- {name: tokens, mountPath: /run/secrets/rlaif/tokens, readOnly: true}
{{- end }}
{{- if and .client $values.tokens.clientSecret }}
- {name: token, mountPath: /run/secrets/rlaif/token, readOnly: true}
{{- end }}
{{- end }}
