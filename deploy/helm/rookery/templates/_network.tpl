{{/* Who may talk to whom. Names are resolved by everybody who talks to anybody. */}}

{{/* dict root, component, profile, ingress, egress (YAML), hook (annotations), metrics: whether it has any */}}
{{- define "rookery.networkPolicy" -}}
{{- if .root.Values.networkPolicy.enabled -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "rookery.name" . }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
  {{- with .hook }}
  annotations:
    {{- . | nindent 4 }}
  {{- end }}
spec:
  podSelector:
    matchLabels:
      {{- include "rookery.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- $ingress := .ingress | default "" | trim }}
  {{- $monitoring := and .workload .root.Values.networkPolicy.monitoring }}
  {{- if or $ingress $monitoring }}
  ingress:
    {{- with $ingress }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if $monitoring }}
    - from:
        {{- toYaml .root.Values.networkPolicy.monitoring | nindent 8 }}
      ports: [{protocol: TCP, port: {{ .root.Values.metrics.port }}}]
    {{- end }}
  {{- end }}
  {{- $traces := ternary (include "rookery.to.traces" .) "" (not (not .workload)) }}
  {{- with list .egress $traces | compact | join "\n" | trim }}
  egress:
    - ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* dict root, components (list), port */}}
{{- define "rookery.from" -}}
- from:
    {{- include "rookery.peers" . | trim | nindent 4 }}
  ports: [{protocol: TCP, port: {{ .port }}}]
{{- end }}

{{- define "rookery.to" -}}
- to:
    {{- include "rookery.peers" . | trim | nindent 4 }}
  ports: [{protocol: TCP, port: {{ .port }}}]
{{- end }}

{{- define "rookery.peers" -}}
{{- range .components }}
- podSelector:
    matchLabels:
      {{- include "rookery.selector" (dict "root" $.root "component" .) | nindent 6 }}
{{- end }}
{{- end }}

{{/* dict peers (may be empty: anywhere), port */}}
{{- define "rookery.outside" -}}
- ports: [{protocol: TCP, port: {{ .port | int }}}]
  {{- with .peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* dict peers, port */}}
{{- define "rookery.in" -}}
- from:
    {{- toYaml .peers | nindent 4 }}
  ports: [{protocol: TCP, port: {{ .port | int }}}]
{{- end }}

{{/* A port as the values say it, or else as the address does. dict port, host, secure */}}
{{- define "rookery.port" -}}
{{- .port | int | default (regexFind ":[0-9]+$" .host | trimPrefix ":") | default (ternary 443 80 .secure) }}
{{- end }}

{{/* Of an endpoint: dict root, endpoint */}}
{{- define "rookery.to.endpoint" -}}
{{- $e := .endpoint -}}
{{- $port := include "rookery.port" (dict "port" $e.port "host" (urlParse $e.url).host "secure" (hasPrefix "https:" $e.url)) -}}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.endpointPeers "port" $port) }}
{{- end }}

{{- define "rookery.to.traces" -}}
{{- $traces := .root.Values.traces -}}
{{- if $traces.url -}}
{{- $secure := hasPrefix "https:" $traces.url -}}
{{- $port := include "rookery.port" (dict "port" $traces.port "host" (urlParse $traces.url).host "secure" $secure) -}}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.tracesPeers "port" $port) }}
{{- end }}
{{- end }}

{{- define "rookery.to.database" -}}
{{- if .root.Values.dev.postgres.enabled -}}
{{ include "rookery.to" (dict "root" .root "components" (list "postgres") "port" 5432) }}
{{- else -}}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.databasePeers "port" .root.Values.database.port) }}
{{- end }}
{{- end }}

{{- define "rookery.to.broker" -}}
{{- if .root.Values.dev.redis.enabled -}}
{{ include "rookery.to" (dict "root" .root "components" (list "redis") "port" 6379) }}
{{- else -}}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.brokerPeers "port" .root.Values.broker.port) }}
{{- end }}
{{- end }}

{{- define "rookery.to.store" -}}
{{- if .root.Values.dev.s3.enabled -}}
{{ include "rookery.to" (dict "root" .root "components" (list "s3") "port" 9000) }}
{{- else -}}
{{- $store := .root.Values.store -}}
{{- $port := include "rookery.port" (dict "port" $store.port "host" $store.endpoint "secure" $store.secure) -}}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.storePeers "port" $port) }}
{{- end }}
{{- end }}

{{- define "rookery.to.hub" -}}
{{- if .root.Values.hub.online }}
{{ include "rookery.outside" (dict "peers" .root.Values.networkPolicy.hubPeers "port" 443) }}
{{- end }}
{{- end }}

{{- define "rookery.to.coordinator" -}}
{{ include "rookery.to" (dict "root" .root "components" (list "coordinator") "port" 7070) }}
{{- end }}

{{- define "rookery.to.jobs" -}}
{{ include "rookery.to" (dict "root" .root "components" (list "coordinator") "port" 7071) }}
{{- end }}
