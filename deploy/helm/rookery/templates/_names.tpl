{{/* Names, labels and what pods have in common. */}}

{{/* dict root, component, profile (may be empty) -> rookery-teacher-x */}}
{{- define "rookery.name" -}}
{{ .root.Values.fullnameOverride }}-{{ .component }}{{ with .profile }}-{{ . }}{{ end }}
{{- end }}

{{/* The name of a Job, which changes with what it does: Kubernetes cannot change a Job. dict name, spec */}}
{{- define "rookery.jobName" -}}
{{ .name | trunc 52 | trimSuffix "-" }}-{{ .spec | sha256sum | trunc 10 }}
{{- end }}

{{/*
How a Job of ours ends. Pods that fail stay, with their logs. One that Helm makes as a hook is removed by Helm.
dict retries, seconds, hook
*/}}
{{- define "rookery.jobEnd" -}}
backoffLimit: {{ .retries | int }}
activeDeadlineSeconds: {{ .seconds | int }}
{{- if not .hook }}
ttlSecondsAfterFinished: 86400
{{- end }}
{{- end }}

{{- define "rookery.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .profile }}
rookery/profile: {{ . }}
{{- end }}
{{- end }}

{{- define "rookery.labels" -}}
{{ include "rookery.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* dict root, image (key of images), own (the workload's image, may be absent) */}}
{{- define "rookery.image" -}}
{{- $image := get .root.Values.images .image -}}
{{- $own := .own | default dict -}}
{{- $repository := $own.repository | default $image.repository -}}
{{- $digest := $own.digest | default (ternary "" $image.digest (or $own.tag $own.repository | empty | not)) -}}
{{ .root.Values.images.registry }}{{ $repository }}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $own.tag | default $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Of a server: until SIGTERM, to drain, for calls that are told to end, and to spare. dict root, drain */}}
{{- define "rookery.serverGrace" -}}
{{ add (int .root.Values.preStopSeconds) (int (ceil .drain)) 10 }}
{{- end }}

{{/* Of a worker: 25 seconds, after which it ends whatever its jobs do, or what a job has to stop; and to spare. */}}
{{- define "rookery.workerGrace" -}}
{{ add (max 25 (int (ceil .stop))) 10 }}
{{- end }}

{{/* Pods satisfy the Pod Security Standard `restricted`. */}}
{{- define "rookery.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .user | default 10001 }}
runAsGroup: {{ .user | default 10001 }}
fsGroup: {{ .user | default 10001 }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "rookery.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What any pod of ours begins with. Service links would be taken for settings: ROOKERY_METRICS_PORT. */}}
{{- define "rookery.podStart" -}}
serviceAccountName: {{ include "rookery.name" (dict "root" .root "component" .component) }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "rookery.podSecurity" . | nindent 2 }}
{{- end }}

{{/* Where pods go. */}}
{{- define "rookery.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{/* dict root, item -> the teacher with its defaults, as YAML */}}
{{- define "rookery.teacher" -}}
{{- $p := mustMergeOverwrite (deepCopy .root.Values.teacherDefaults) (deepCopy .item) -}}
{{- $_ := set $p "server" (mustMergeOverwrite (deepCopy .root.Values.workloadDefaults) $p.server) -}}
{{- $_ := set $p "trainer" (mustMergeOverwrite (deepCopy .root.Values.workloadDefaults) $p.trainer) -}}
{{ toYaml $p }}
{{- end }}

{{/* Likewise, a student */}}
{{- define "rookery.student" -}}
{{- $p := mustMergeOverwrite (deepCopy .root.Values.studentDefaults) (deepCopy .item) -}}
{{- $_ := set $p "trainer" (mustMergeOverwrite (deepCopy .root.Values.workloadDefaults) $p.trainer) -}}
{{- $_ := set $p "evaluator" (mustMergeOverwrite (deepCopy .root.Values.workloadDefaults) $p.evaluator) -}}
{{ toYaml $p }}
{{- end }}
