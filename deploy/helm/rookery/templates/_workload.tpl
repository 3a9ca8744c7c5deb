{{/*
A Deployment and what belongs to it: disruption budget, scaling, service account's name, network policy.

dict root, component, profile (may be empty), image (key of images), command (list), workload (values), env (YAML),
  port (of a gRPC server, or 0), drain (seconds of a server, or 0), stop (of a worker), startup (seconds), store (bool),
  claim (of models; "-" for none in a claim, empty for no models), migrates (bool), query (KEDA's), each (jobs for a replica),
  ingress, egress (YAML of a network policy)
*/}}
{{- define "rookery.workload" -}}
{{- $root := .root -}}
{{- $w := .workload -}}
{{- $name := include "rookery.name" . -}}
{{- $keda := dig "keda" "enabled" false $w -}}
{{- $hpa := dig "hpa" "enabled" false $w -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  {{- if not (or $keda $hpa) }}
  replicas: {{ $w.replicas | int }}
  {{- end }}
  revisionHistoryLimit: 3
  {{- if .port }}
  progressDeadlineSeconds: {{ add (int .startup) 600 }}
  {{- end }}
  strategy:
    {{- if eq ($w.strategy | default "RollingUpdate") "Recreate" }}
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
    {{- end }}
  selector:
    matchLabels:
      {{- include "rookery.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "rookery.selector" . | nindent 8 }}
        rookery/metrics: "true"
        {{- with $w.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $w.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "rookery.podStart" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ if .port }}{{ include "rookery.serverGrace" . }}{{ else }}{{ include "rookery.workerGrace" . }}{{ end }}
      {{- with include "rookery.placement" $w | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- if .migrates }}
      {{- include "rookery.workload.migration" . | nindent 6 }}
      {{- end }}
      containers:
        - name: {{ .component }}
          image: {{ include "rookery.image" (dict "root" $root "image" .image "own" $w.image) }}
          imagePullPolicy: {{ $root.Values.images.pullPolicy }}
          command: {{ .command | toJson }}
          env:
            {{- include "rookery.workload.env" . | nindent 12 }}
          ports:
            {{- if .port }}
            - {name: grpc, containerPort: {{ .port }}}
            {{- end }}
            {{- if eq .component "coordinator" }}
            - {name: jobs, containerPort: 7071}
            {{- end }}
            {{- if .tls }}
            - {name: grpcs, containerPort: 7443}
            {{- end }}
            - {name: metrics, containerPort: {{ $root.Values.metrics.port }}}
          {{- include "rookery.probes" . | nindent 10 }}
          {{- if .port }}
          lifecycle:
            preStop:
              exec:
                command: ["python3", "-I", "-S", "-c", "import time; time.sleep({{ $root.Values.preStopSeconds | int }})"]
          {{- end }}
          {{- with include "rookery.resources" $w }}
          resources:
            {{- . | nindent 12 }}
          {{- end }}
          securityContext:
            {{- include "rookery.containerSecurity" . | nindent 12 }}
          volumeMounts:
            {{- include "rookery.workload.mounts" . | nindent 12 }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- if .store }}
        - name: adapters
          emptyDir: {}
        {{- end }}
        {{- if eq (.claim | default "") "-" }}
        - name: models
          emptyDir: {sizeLimit: {{ .podSize }}}
        {{- else if .claim }}
        - name: models
          persistentVolumeClaim: {claimName: {{ .claim }}}
        {{- end }}
        {{- with .tls }}
        - name: tls
          secret: {secretName: {{ . }}}
        {{- end }}
        {{- with $w.sharedMemory }}
        - name: shared-memory
          emptyDir: {medium: Memory, sizeLimit: {{ . }}}
        {{- end }}
        {{- with include "rookery.volume.ca" . }}
        {{- . | nindent 8 }}
        {{- end }}
{{- $most := $w.replicas | int -}}
{{- if $keda }}{{ $most = $w.keda.max | int }}{{ else if $hpa }}{{ $most = $w.hpa.max | int }}{{ end }}
{{- if and $w.podDisruptionBudget.enabled (gt $most 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $w.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "rookery.selector" . | nindent 6 }}
{{- end }}
{{- if $keda }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $name }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    name: {{ $name }}
  pollingInterval: {{ $w.keda.pollingSeconds | int }}
  cooldownPeriod: {{ $w.keda.cooldownSeconds | int }}
  minReplicaCount: {{ $w.keda.min | int }}
  maxReplicaCount: {{ $w.keda.max | int }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ min 3600 ($w.keda.cooldownSeconds | int) }}
          policies:
            - {type: Pods, value: 1, periodSeconds: 60}
  triggers:
    - type: postgresql
      metadata:
        query: {{ .query | quote }}
        targetQueryValue: {{ $w.keda.jobsPerReplica | default .each | int | quote }}
        activationTargetQueryValue: "0"
      authenticationRef:
        name: {{ $root.Values.fullnameOverride }}-database
{{- end }}
{{- if $hpa }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ $name }}
  minReplicas: {{ $w.hpa.min | int }}
  maxReplicas: {{ $w.hpa.max | int }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: {type: Utilization, averageUtilization: {{ $w.hpa.cpuPercent | int }}}
{{- end }}
---
{{ include "rookery.networkPolicy" . }}
{{- end }}

{{- define "rookery.workload.env" -}}
{{ include "rookery.env.common" . }}
{{ include "rookery.env.metrics" . }}
{{- with include "rookery.env.traces" . | trim }}
{{ . }}
{{- end }}
{{- with include "rookery.env.ca" . | trim }}
{{ . }}
{{- end }}
{{ .env }}
{{- with include "rookery.env.own" .workload | trim }}
{{ . }}
{{- end }}
{{- end }}

{{- define "rookery.workload.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .store }}
- {name: adapters, mountPath: /var/cache/rookery}
{{- end }}
{{- if .claim }}
- {name: models, mountPath: /var/cache/huggingface}
{{- end }}
{{- if .workload.sharedMemory }}
- {name: shared-memory, mountPath: /dev/shm}
{{- end }}
{{- if .tls }}
- {name: tls, mountPath: /etc/rookery/tls, readOnly: true}
{{- end }}
{{- with include "rookery.mount.ca" . }}
{{ . }}
{{- end }}
{{- end }}

{{/* Where no hook migrates: whoever opens the database brings it up to date first. */}}
{{- define "rookery.workload.migration" -}}
initContainers:
  - name: migration
    image: {{ include "rookery.image" (dict "root" .root "image" .image "own" .workload.image) }}
    imagePullPolicy: {{ .root.Values.images.pullPolicy }}
    command: ["rookery-coordinator", "migrate"]
    env:
      {{- include "rookery.workload.env" . | nindent 6 }}
    resources:
      {{- toYaml .root.Values.migrations.resources | nindent 6 }}
    securityContext:
      {{- include "rookery.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "rookery.workload.mounts" . | nindent 6 }}
{{- end }}

{{/*
A server is asked by gRPC's health service. A worker listens for nobody: that its process lives is seen from its metrics.
*/}}
{{- define "rookery.probes" -}}
{{- if .port -}}
startupProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ div (add (int .startup) 4) 5 }}
readinessProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- else -}}
startupProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}
{{- end }}

{{- define "rookery.resources" -}}
{{- $resources := deepCopy (.resources | default dict) -}}
{{- $claims := list -}}
{{- range .resourceClaims }}{{ $claims = append $claims (dict "name" .name) }}{{ end -}}
{{- if $claims }}{{ $_ := set $resources "claims" $claims }}{{ end -}}
{{- if .gpus -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $limits .gpuResource (.gpus | int) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- with $resources }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* A Service without an address of its own: callers find all pods, and take them in turn. dict ..., ports (YAML) */}}
{{- define "rookery.headless" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "rookery.name" . }}
  labels:
    {{- include "rookery.labels" . | nindent 4 }}
spec:
  clusterIP: None
  selector:
    {{- include "rookery.selector" . | nindent 4 }}
  ports:
    {{- .ports | nindent 4 }}
{{- end }}
