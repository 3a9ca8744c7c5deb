{{/* What processes are told. Every ROOKERY_ name is a field of a settings.py. */}}

{{/* dict root, logs, of any process of the services */}}
{{- define "rookery.env.common" -}}
- {name: ROOKERY_LOG_FORMAT, value: {{ .root.Values.log.format | quote }}}
- {name: ROOKERY_LOG_LEVEL, value: {{ .root.Values.log.level | quote }}}
{{- end }}

{{- define "rookery.env.traces" -}}
{{- with .root.Values.traces }}
{{- if .url -}}
- {name: ROOKERY_TRACES_URL, value: {{ .url | quote }}}
- {name: ROOKERY_TRACES_RATIO, value: {{ .ratio | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "rookery.env.metrics" -}}
- {name: ROOKERY_METRICS_PORT, value: {{ .root.Values.metrics.port | quote }}}
{{- end }}

{{/* Certificates to trust: for Python and S3, for what uses requests, for PostgreSQL, and for collectors of spans. Nothing without a bundle. */}}
{{- define "rookery.env.ca" -}}
{{- with .root.Values.caBundle }}
{{- if .existingConfigMap -}}
- {name: SSL_CERT_FILE, value: "/etc/rookery/ca/{{ .key }}"}
- {name: REQUESTS_CA_BUNDLE, value: "/etc/rookery/ca/{{ .key }}"}
- {name: PGSSLROOTCERT, value: "/etc/rookery/ca/{{ .key }}"}
- {name: GRPC_DEFAULT_SSL_ROOTS_FILE_PATH, value: "/etc/rookery/ca/{{ .key }}"}
{{- end }}
{{- end }}
{{- end }}

{{- define "rookery.mount.ca" -}}
{{- if .root.Values.caBundle.existingConfigMap -}}
- {name: ca, mountPath: /etc/rookery/ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "rookery.volume.ca" -}}
{{- with .root.Values.caBundle.existingConfigMap -}}
- name: ca
  configMap: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "rookery.env.coordinator" -}}
- {name: ROOKERY_COORDINATOR_TARGET, value: "dns:///{{ .root.Values.fullnameOverride }}-coordinator:7070"}
{{- end }}

{{- define "rookery.env.jobs" -}}
- {name: ROOKERY_JOB_SERVICE_TARGET, value: "dns:///{{ .root.Values.fullnameOverride }}-coordinator:7071"}
{{- end }}

{{- define "rookery.env.database" -}}
- name: ROOKERY_DATABASE_URL
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.database.existingSecret }}, key: {{ .root.Values.database.urlKey }}}
{{- end }}

{{- define "rookery.env.broker" -}}
{{- if .root.Values.dev.redis.enabled -}}
- {name: ROOKERY_BROKER_URL, value: "redis://{{ .root.Values.fullnameOverride }}-redis:6379/0"}
{{- else -}}
- name: ROOKERY_BROKER_URL
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.broker.existingSecret }}, key: {{ .root.Values.broker.urlKey }}}
{{- end }}
{{- end }}

{{- define "rookery.env.store" -}}
{{- $store := .root.Values.store -}}
{{- $dev := .root.Values.dev.s3.enabled -}}
- {name: ROOKERY_STORE_URL, value: {{ $store.url | quote }}}
- {name: ROOKERY_S3_ENDPOINT, value: {{ ternary (printf "%s-s3:9000" .root.Values.fullnameOverride) $store.endpoint $dev | quote }}}
- {name: ROOKERY_S3_REGION, value: {{ $store.region | quote }}}
- {name: ROOKERY_S3_SECURE, value: {{ ternary false $store.secure $dev | quote }}}
- name: ROOKERY_S3_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ $store.existingSecret }}, key: {{ $store.accessKeyKey }}}
- name: ROOKERY_S3_SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ $store.existingSecret }}, key: {{ $store.secretKeyKey }}}
- {name: ROOKERY_CACHE_FOLDER, value: /var/cache/rookery}
- {name: ROOKERY_CACHE_BYTES, value: {{ $store.cacheBytes | int64 | quote }}}
{{- end }}

{{/* Of a process that holds a model or has one: its profile, and where models from the hub are kept. */}}
{{- define "rookery.env.model" -}}
- {name: ROOKERY_PROFILE, value: "profiles/{{ .profile }}"}
- {name: HF_HOME, value: /var/cache/huggingface}
{{- if not .root.Values.hub.online }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- else if .root.Values.hub.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.hub.existingSecret }}, key: {{ .root.Values.hub.tokenKey }}}
{{- end }}
{{- end }}

{{/* dict prefix, endpoint: of a RemoteModel */}}
{{- define "rookery.env.endpoint" -}}
{{- $e := .endpoint -}}
- {name: {{ .prefix }}_URL, value: {{ $e.url | quote }}}
- {name: {{ .prefix }}_API, value: {{ $e.api | quote }}}
- {name: {{ .prefix }}_CONCURRENCY, value: {{ $e.concurrency | int | quote }}}
- {name: {{ .prefix }}_RETRIES, value: {{ $e.retries | int | quote }}}
- {name: {{ .prefix }}_SECONDS, value: {{ $e.seconds | quote }}}
- {name: {{ .prefix }}_PROMPT_PRICE, value: {{ $e.promptPrice | quote }}}
- {name: {{ .prefix }}_COMPLETION_PRICE, value: {{ $e.completionPrice | quote }}}
{{- with $e.existingSecret }}
- name: {{ $.prefix }}_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $e.secretKey }}}
{{- end }}
{{- end }}

{{/* A workload's own: settings by their fields' names, and the rest of its environment. With GPUs it must use them. */}}
{{- define "rookery.env.own" -}}
{{- if or .gpus .resourceClaims }}
- {name: ROOKERY_DEVICE, value: cuda}
{{- end }}
{{- range $field, $value := .settings }}
- {name: ROOKERY_{{ $field | upper }}, value: {{ include "rookery.text" $value | quote }}}
{{- end }}
{{- range $name, $value := .env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/* A number without an exponent, which YAML gives large ones. */}}
{{- define "rookery.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}
