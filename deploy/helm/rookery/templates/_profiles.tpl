{{/* The claim in which a profile's models are kept; "-" if they are kept in its pods. dict root, profile (with defaults) */}}
{{- define "rookery.claim" -}}
{{- $cache := .profile.modelCache -}}
{{- if $cache.existingClaim }}{{ $cache.existingClaim }}
{{- else if $cache.size }}{{ include "rookery.name" (dict "root" .root "component" "models" "profile" .profile.name) }}
{{- else }}-{{ end }}
{{- end }}

{{- define "rookery.modelCache" -}}
{{- $cache := .profile.modelCache -}}
{{- if and $cache.size (not $cache.existingClaim) }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "rookery.claim" . }}
  labels:
    {{- include "rookery.labels" (dict "root" .root "component" "models" "profile" .profile.name) | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: [{{ $cache.accessMode }}]
  {{- with $cache.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $cache.size }}
{{- end }}
{{- end }}

{{/* `rookery models create`: an equal profile may be there, another of its name may not. dict root, role, profile */}}
{{- define "rookery.registration.command" -}}
{{- $p := .profile -}}
{{- $server := printf "dns:///%s-coordinator:7070" .root.Values.fullnameOverride -}}
{{- $command := list "rookery" "models" "create" .role $p.name "--if-absent" "--server" $server -}}
{{- $command = concat $command (list "--model" $p.model "--dtype" $p.dtype "--engine" $p.engine) -}}
{{- if $p.revision }}{{ $command = concat $command (list "--revision" $p.revision) }}{{ end -}}
{{- if $p.chat }}{{ $command = append $command "--chat" }}{{ end -}}
{{- range $option, $limit := dict "--max-passage" $p.limits.maxPassage "--max-new-tokens" $p.limits.maxNewTokens "--max-rank" $p.limits.maxRank "--trials-per-job" $p.limits.trialsPerJob -}}
{{- if $limit }}{{ $command = concat $command (list $option ($limit | int | toString)) }}{{ end -}}
{{- end -}}
{{ $command | toJson }}
{{- end }}

{{/* dict root, role, profile */}}
{{- define "rookery.registration" -}}
{{- $context := dict "root" .root "component" "registration" "profile" .profile.name -}}
{{- $spec := include "rookery.registration.spec" (merge (dict "command" (include "rookery.registration.command" .)) $context) -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "rookery.jobName" (dict "name" (include "rookery.name" $context) "spec" $spec) }}
  labels:
    {{- include "rookery.labels" $context | nindent 4 }}
spec:
  {{- $spec | nindent 2 }}
{{- end }}

{{- define "rookery.registration.spec" -}}
{{ include "rookery.jobEnd" (dict "retries" .root.Values.registration.retries "seconds" .root.Values.registration.seconds) }}
template:
  metadata:
    labels:
      {{- include "rookery.selector" . | nindent 6 }}
  spec:
    {{- include "rookery.podStart" . | nindent 4 }}
    restartPolicy: Never
    containers:
      - name: registration
        image: {{ include "rookery.image" (dict "root" .root "image" "coordinator") }}
        imagePullPolicy: {{ .root.Values.images.pullPolicy }}
        command: {{ .command }}
        {{- with include "rookery.env.ca" . | trim }}
        env:
          {{- . | nindent 10 }}
        {{- end }}
        resources:
          {{- toYaml .root.Values.registration.resources | nindent 10 }}
        securityContext:
          {{- include "rookery.containerSecurity" . | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
          {{- with include "rookery.mount.ca" . }}
          {{- . | nindent 10 }}
          {{- end }}
    volumes:
      - name: tmp
        emptyDir: {}
      {{- with include "rookery.volume.ca" . }}
      {{- . | nindent 6 }}
      {{- end }}
{{- end }}
