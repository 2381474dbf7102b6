{{/* Where the ledger lies; the URL holds a password, so it comes from a Secret and goes into no file. */}}
{{- define "rlaif.databaseEnv" -}}
{{- if .Values.postgresql.enabled }}
{{- $name := printf "%s-postgresql" (include "rlaif.fullname" .) }}
- name: POSTGRES_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.postgresql.existingSecret | default $name }}, key: password}}
- {name: RLAIF_DATABASE_URL, value: "postgresql+psycopg://rlaif:$(POSTGRES_PASSWORD)@{{ $name }}:5432/rlaif"}
{{- else }}
- name: RLAIF_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}}
{{- end }}
{{- end }}

{{/* Container that brings the schema up to date, as list item. */}}
{{- define "rlaif.migrateContainer" -}}
- name: migrate
  image: {{ include "rlaif.image" (dict "root" . "image" "oversight") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [python, -m, rlaif.oversight.migrate]
  env:
    {{- include "rlaif.databaseEnv" . | trim | nindent 4 }}
    {{- with (include "rlaif.podValues" (dict "root" . "values" .Values.oversight) | fromYaml).extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    requests: {cpu: 100m, memory: 256Mi}
    limits: {cpu: "1", memory: 512Mi}
  securityContext: {{- include "rlaif.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- with (include "rlaif.podValues" (dict "root" . "values" .Values.oversight) | fromYaml).extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
