{{/* One pod of somebody else's image. dict root, component, profile, image, user, port, command (list, may be empty), init,
env (YAML), probe (YAML), folders (dict name -> path), callers (components), clients (peers) */}}
{{- define "rookery.dev" -}}
{{- $name := include "rookery.name" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  replicas: 1
  strategy:
    type: Recreate
  selector:
    matchLabels:
      {{- include "rookery.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "rookery.selector" . | nindent 8 }}
    spec:
      {{- include "rookery.podStart" . | nindent 6 }}
      terminationGracePeriodSeconds: 30
      {{- with .init }}
      initContainers:
        - name: prepare
          image: {{ $.image }}
          command: {{ . | toJson }}
          securityContext:
            {{- include "rookery.containerSecurity" $ | nindent 12 }}
          volumeMounts:
            {{- range $folder, $path := $.folders }}
            - {name: {{ $folder }}, mountPath: {{ $path }}}
            {{- end }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ .image }}
          imagePullPolicy: {{ .root.Values.images.pullPolicy }}
          {{- with .command }}
          command: {{ . | toJson }}
          {{- end }}
          {{- with .env }}
          env:
            {{- . | nindent 12 }}
          {{- end }}
          ports:
            - {name: {{ .component }}, containerPort: {{ .port }}}
          {{- range $probe := list "startupProbe" "readinessProbe" "livenessProbe" }}
          {{ $probe }}:
            {{- $.probe | nindent 12 }}
            periodSeconds: 5
            timeoutSeconds: 3
            failureThreshold: 12
          {{- end }}
          resources:
            requests: {cpu: 100m, memory: 128Mi}
            limits: {memory: 1Gi}
          securityContext:
            {{- include "rookery.containerSecurity" . | nindent 12 }}
          volumeMounts:
            {{- range $folder, $path := .folders }}
            - {name: {{ $folder }}, mountPath: {{ $path }}}
            {{- end }}
      volumes:
        {{- range $folder, $path := .folders }}
        - name: {{ $folder }}
          emptyDir: {}
        {{- end }}
---
{{ include "rookery.headless" (merge (dict "ports" (printf "- {name: %s, port: %d}" .component (int .port))) .) }}
---
{{ $ingress := include "rookery.from" (dict "root" .root "components" .callers "port" .port) -}}
{{- with .clients -}}
{{- $ingress = printf "%s\n%s" $ingress (include "rookery.in" (dict "peers" . "port" $.port)) -}}
{{- end -}}
{{- include "rookery.networkPolicy" (merge (dict "ingress" $ingress) .) }}
{{- end }}

{{- define "rookery.dev.postgres" -}}
- {name: POSTGRES_USER, value: rookery}
- {name: POSTGRES_DB, value: rookery}
- {name: PGDATA, value: /var/lib/postgresql/data/rookery}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: password}
{{- end }}

{{- define "rookery.dev.s3" -}}
- name: ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ .Values.store.existingSecret }}, key: {{ .Values.store.accessKeyKey }}}
- name: SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ .Values.store.existingSecret }}, key: {{ .Values.store.secretKeyKey }}}
- {name: RCLONE_AUTH_KEY, value: '"$(ACCESS_KEY),$(SECRET_KEY)"'}
{{- end }}
