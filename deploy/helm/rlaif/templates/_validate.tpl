{{/* What values.schema.json cannot say in a sentence: combinations that would not work. All are told at once. */}}
{{- define "rlaif.validate" -}}
{{- $found := list }}
{{- range $name := list "sampler" "judge" "evaluator" }}
{{- $values := index $.Values $name }}
{{- if dig "enabled" true $values }}
{{- $found = concat $found (include "rlaif.validateModel" (dict "root" $ "name" $name "values" $values) | fromJsonArray) }}
{{- end }}
{{- end }}
{{- range $name := list "sampler" "judge" "evaluator" "reward" "oversight" }}
{{- $found = concat $found (include "rlaif.validateScale" (dict "root" $ "name" $name "values" (index $.Values $name)) | fromJsonArray) }}
{{- end }}
{{- $found = concat $found (include "rlaif.validatePods" . | fromJsonArray) }}
{{- $found = concat $found (include "rlaif.validateJudges" . | fromJsonArray) }}
{{- $found = concat $found (include "rlaif.validateStorage" . | fromJsonArray) }}
{{- $found = concat $found (include "rlaif.validateLoop" . | fromJsonArray) }}
{{- $found = concat $found (include "rlaif.validateAccess" . | fromJsonArray) }}
{{- if $found }}
{{- fail (printf "\n  - %s" (join "\n  - " $found)) }}
{{- end }}
{{- end }}

{{/* (root, name, values) → what is wrong with a service's model, engine and GPUs, as a JSON list of sentences. */}}
{{- define "rlaif.validateModel" -}}
{{- $found := list }}
{{- $name := .name }}
{{- $model := .values.model }}
{{- $gpus := int .values.gpus }}
{{- $mounts := (include "rlaif.podValues" . | fromYaml).extraVolumeMounts }}
{{- if not $model }}
{{- $found = append $found (printf "%s.model is required: a folder below /rlaif, a URI such as s3://bucket/model, a Hugging Face id, or playground for the shipped tiny one" $name) }}
{{- else if and (hasPrefix "/rlaif/" $model) (not .root.Values.runs.enabled) }}
{{- $found = append $found (printf "%s.model %s lies on the volume of runs, which runs.enabled=false leaves out" $name $model) }}
{{- else if and (hasPrefix "/" $model) (not (hasPrefix "/rlaif/" $model)) (not $mounts) }}
{{- $found = append $found (printf "%s.model %s is a folder that no pod has: put it below /rlaif, or mount it with %s.pod.extraVolumes and %s.pod.extraVolumeMounts" $name $model $name $name) }}
{{- end }}
{{- if and (eq .values.engine "vllm") (eq $gpus 0) }}
{{- $found = append $found (printf "%s.engine vllm needs %s.gpus of 1 or more: the image for CPUs has transformers only, so set %s.engine to hf there" $name $name $name) }}
{{- else if and (eq .values.engine "hf") (gt $gpus 1) }}
{{- $found = append $found (printf "%s.engine hf runs a model on one GPU, and %s.gpus is %d: set it to 1, or the engine to vllm" $name $name $gpus) }}
{{- else if and (eq .values.engine "openai") (gt $gpus 0) }}
{{- $found = append $found (printf "%s.engine openai asks a server elsewhere and needs no GPU here: set %s.gpus to 0" $name $name) }}
{{- end }}
{{- with dig "engine" "kind" "" .values.settings }}
{{- if ne . $.values.engine }}
{{- $found = append $found (printf "%s.settings.engine.kind %s: set %s.engine, which chooses the image too" $name . $name) }}
{{- end }}
{{- end }}
{{- if eq .values.engine "openai" }}
{{- $key := printf "%s.settings.engine.openai.base_url" $name }}
{{- with dig "engine" "openai" "base_url" "" .values.settings }}
{{- $found = concat $found (include "rlaif.validatePort" (dict "root" $.root "key" $key "url" .) | fromJsonArray) }}
{{- else }}
{{- $found = append $found (printf "%s.engine openai needs %s: the address of the server, such as http://vllm.models.svc:8000/v1" $name $key) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root, key, url) → whether the network policy keeps engines from that address, as a JSON list of sentences. */}}
{{- define "rlaif.validatePort" -}}
{{- $found := list }}
{{- $url := urlParse .url }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "80" "443" (eq $url.scheme "http")) | int }}
{{- $open := list }}
{{- range .root.Values.networkPolicy.storePorts }}{{ $open = append $open (int .) }}{{ end }}
{{- if and .root.Values.networkPolicy.enabled (not (has $port $open)) }}
{{- $found = append $found (printf "%s %s is at port %d, which networkPolicy.storePorts leaves out: add it there" .key .url $port) }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root, name, values) → what is wrong with its number of replicas and how they are replaced. */}}
{{- define "rlaif.validateScale" -}}
{{- $found := list }}
{{- $name := .name }}
{{- $rollout := .values.rollout }}
{{- if and (eq (toString $rollout.maxSurge) "0") (eq (toString $rollout.maxUnavailable) "0") }}
{{- $found = append $found (printf "%s.rollout: maxSurge and maxUnavailable are both 0, so no pod could ever be replaced; set one of them to 1" $name) }}
{{- end }}
{{- with .values.autoscaling }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- $found = append $found (printf "%s.autoscaling: minReplicas %d is above maxReplicas %d" $name (int .minReplicas) (int .maxReplicas)) }}
{{- end }}
{{- if and (eq .kind "keda") (not $.root.Values.monitoring.prometheusUrl) }}
{{- $found = append $found (printf "%s.autoscaling.kind keda needs monitoring.prometheusUrl: queue depths are asked there" $name) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root) → what is wrong with images and environments. */}}
{{- define "rlaif.validatePods" -}}
{{- $found := list }}
{{- if eq .Values.image.tag "latest" }}
{{- $found = append $found "image.tag latest is another image tomorrow: name a version" }}
{{- end }}
{{- if hasSuffix ":latest" .Values.postgresql.image }}
{{- $found = append $found (printf "postgresql.image %s is another image tomorrow: name a version" .Values.postgresql.image) }}
{{- end }}
{{- $sources := dict "HOME" "the volume at /var/lib/rlaif" "RLAIF_DATABASE_URL" "database.existingSecret" "RLAIF_TOKEN" "tokens.existingSecret and tokens.clientSecret" }}
{{- $pods := dict "pod" .Values.pod "sampler.pod" .Values.sampler.pod "judge.pod" .Values.judge.pod "evaluator.pod" .Values.evaluator.pod "reward.pod" .Values.reward.pod "oversight.pod" .Values.oversight.pod }}
{{- range $name, $pod := $pods }}
{{- range $variable := $pod.extraEnv }}
{{- if hasKey $sources $variable.name }}
{{- $found = append $found (printf "%s.extraEnv: %s is set by the chart, from %s" $name $variable.name (get $sources $variable.name)) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root) → what is wrong with constitutions and the second judge. */}}
{{- define "rlaif.validateJudges" -}}
{{- $found := list }}
{{- $shipped := list "code-review" "harmless-only" "helpful-harmless" "playground" "summarisation" }}
{{- range $name := list "judge" "evaluator" }}
{{- range (index $.Values $name).constitutions }}
{{- if not (or (has . $shipped) (hasKey $.Values.constitutions .) (hasPrefix "/" .)) }}
{{- $found = append $found (printf "%s.constitutions: %s is neither a key of constitutions nor shipped (%s)" $name . (join ", " $shipped)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range list "judge.yaml" "evaluator.yaml" }}
{{- if hasKey $.Values.constitutions . }}
{{- $found = append $found (printf "constitutions: %s is the name of a service's own file; call the constitution something else" .) }}
{{- end }}
{{- end }}
{{- if and .Values.evaluator.enabled .Values.evaluator.model (eq .Values.evaluator.model .Values.judge.model) }}
{{- $found = append $found "evaluator.model is the judge's: an evaluation by the judge whose labels trained the policy is no evidence; name another model, or set evaluator.enabled to false" }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root) → what is wrong with database and volumes. */}}
{{- define "rlaif.validateStorage" -}}
{{- $found := list }}
{{- with .Values.artifacts.endpoint }}
{{- $found = concat $found (include "rlaif.validatePort" (dict "root" $ "key" "artifacts.endpoint" "url" .) | fromJsonArray) }}
{{- end }}
{{- if and .Values.postgresql.enabled .Values.database.existingSecret }}
{{- $found = append $found "database.existingSecret names your PostgreSQL and postgresql.enabled starts one of the chart's: keep one of the two" }}
{{- else if not (or .Values.postgresql.enabled .Values.database.existingSecret) }}
{{- $found = append $found "the ledger needs a database: set database.existingSecret to a Secret with postgresql+psycopg://user:password@host/database under the key url, or postgresql.enabled=true for a trial" }}
{{- end }}
{{- if include "rlaif.artifactsOnVolume" . }}
{{- if not (hasPrefix "/rlaif/" .Values.artifacts.root) }}
{{- $found = append $found (printf "artifacts.root %s: a folder must lie on the volume of runs, for example /rlaif/artifacts; object storage is s3://bucket/prefix or gs://bucket/prefix" .Values.artifacts.root) }}
{{- else if not .Values.runs.enabled }}
{{- $found = append $found (printf "artifacts.root %s lies on the volume of runs, which runs.enabled=false leaves out: give s3://bucket/prefix, or enable it" .Values.artifacts.root) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root) → what the loop lacks. */}}
{{- define "rlaif.validateLoop" -}}
{{- $found := list }}
{{- if .Values.loop.enabled }}
{{- if not .Values.runs.enabled }}
{{- $found = append $found "loop.enabled needs runs.enabled: run folders lie on that volume" }}
{{- end }}
{{- if not (or .Values.training.enabled (eq (dig "jobs" "launcher" "" .Values.loop.settings) "local")) }}
{{- $found = append $found "loop.enabled needs training.enabled: it starts trainings as jobs" }}
{{- end }}
{{- if and .Values.loop.schedule (eq (dig "pipeline" "rlaif" .Values.loop.settings) "rlaif") }}
{{- $found = append $found "loop.schedule: the second run would find the policy that the first has trained; schedule runs that train nothing, such as loop.settings.pipeline label-only, and create the others by hand" }}
{{- end }}
{{- range list "run_root" "out" }}
{{- if hasKey $.Values.loop.settings . }}
{{- $found = append $found (printf "loop.settings.%s: each job has a folder of its own name, /rlaif/runs/<job>; leave it out" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* (root) → what is wrong with certificates and tokens. */}}
{{- define "rlaif.validateAccess" -}}
{{- $found := list }}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) }}
{{- $found = append $found "tls.enabled needs tls.existingSecret: a Secret with tls.crt, tls.key and ca.crt" }}
{{- else if and .Values.tls.existingSecret (not .Values.tls.enabled) }}
{{- $found = append $found "tls.existingSecret is set and tls.enabled is false: the services would speak plaintext; enable it, or leave the Secret out" }}
{{- end }}
{{- if and .Values.tls.clientCertificates (not .Values.tls.enabled) }}
{{- $found = append $found "tls.clientCertificates needs tls.enabled" }}
{{- end }}
{{- if and .Values.monitoring.metricsTls (not .Values.tls.enabled) }}
{{- $found = append $found "monitoring.metricsTls needs tls.enabled: metrics are shown with the services' certificate" }}
{{- end }}
{{- if and .Values.monitoring.metricsTokenSecret (not .Values.tokens.existingSecret) }}
{{- $found = append $found "monitoring.metricsTokenSecret needs tokens.existingSecret: services know no token without it" }}
{{- end }}
{{- if and .Values.tokens.existingSecret (not .Values.tokens.clientSecret) }}
{{- $found = append $found "tokens.existingSecret makes every service ask for a token, and judge and reward would have none: set tokens.clientSecret to a Secret whose key token is one of those listed, with the role trainer" }}
{{- else if and .Values.tokens.clientSecret (not .Values.tokens.existingSecret) }}
{{- $found = append $found "tokens.clientSecret is a token that no service would ask for: set tokens.existingSecret too" }}
{{- end }}
{{- toJson $found }}
{{- end }}
