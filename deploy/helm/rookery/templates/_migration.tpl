{{/* Before what needs them. A database that comes with the release is there only after it. */}}
{{- define "rookery.hook" -}}
{{- if and .Values.migrations.hook (not .Values.dev.postgres.enabled) -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
{{- end }}

{{- define "rookery.migration" -}}
{{ include "rookery.jobEnd" (dict "retries" .root.Values.migrations.retries "seconds" .root.Values.migrations.seconds "hook" (include "rookery.hook" .root)) }}
template:
  metadata:
    labels:
      {{- include "rookery.selector" . | nindent 6 }}
  spec:
    {{- include "rookery.podStart" . | nindent 4 }}
    restartPolicy: Never
    containers:
      - name: migration
        image: {{ include "rookery.image" (dict "root" .root "image" "coordinator") }}
        imagePullPolicy: {{ .root.Values.images.pullPolicy }}
        command: ["rookery-coordinator", "migrate"]
        env:
          {{- include "rookery.env.common" . | nindent 10 }}
          {{- include "rookery.env.database" . | nindent 10 }}
          {{- with include "rookery.env.ca" . | trim }}
          {{- . | nindent 10 }}
          {{- end }}
        resources:
          {{- toYaml .root.Values.migrations.resources | nindent 10 }}
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
