{{/* The workloads that can scale, by their names, as YAML. */}}
{{- define "rookery.scalables" -}}
{{- $found := dict "coordinator" .Values.coordinator "worker" .Values.worker -}}
{{- range .Values.teachers -}}
{{- $p := include "rookery.teacher" (dict "root" $ "item" .) | fromYaml -}}
{{- $_ := set $found (printf "teachers.%s.server" $p.name) $p.server -}}
{{- $_ := set $found (printf "teachers.%s.trainer" $p.name) $p.trainer -}}
{{- end -}}
{{- range .Values.students -}}
{{- $p := include "rookery.student" (dict "root" $ "item" .) | fromYaml -}}
{{- $_ := set $found (printf "students.%s.trainer" $p.name) $p.trainer -}}
{{- $_ := set $found (printf "students.%s.evaluator" $p.name) $p.evaluator -}}
{{- end -}}
{{ toYaml $found }}
{{- end }}

{{- define "rookery.usesKeda" -}}
{{- $uses := false -}}
{{- range include "rookery.scalables" . | fromYaml -}}
{{- if dig "keda" "enabled" false . }}{{ $uses = true }}{{ end -}}
{{- end -}}
{{ $uses }}
{{- end }}

{{- define "rookery.check" -}}
{{- range $name, $w := include "rookery.scalables" . | fromYaml -}}
{{- if and (dig "keda" "enabled" false $w) (dig "hpa" "enabled" false $w) -}}
{{- fail (printf "%s: keda and hpa would fight over its replicas; enable one" $name) -}}
{{- end -}}
{{- range $kind := list "keda" "hpa" -}}
{{- if and (dig $kind "enabled" false $w) (gt (dig $kind "min" 0 $w | int) (dig $kind "max" 0 $w | int)) -}}
{{- fail (printf "%s: %s.min is above %s.max" $name $kind $kind) -}}
{{- end -}}
{{- end -}}
{{- if and (dig "gpus" 0 $w | int) (dig "resourceClaims" list $w) -}}
{{- fail (printf "%s: its GPUs come by gpus or by resourceClaims, not by both" $name) -}}
{{- end -}}
{{- if and (dig "resourceClaims" list $w) (semverCompare "<1.34-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "%s: resourceClaims need Kubernetes 1.34" $name) -}}
{{- end -}}
{{- if and (dig "hpa" "enabled" false $w) (not (dig "resources" "requests" "cpu" "" $w)) -}}
{{- fail (printf "%s: hpa scales by the share of the CPU that is requested, and none is" $name) -}}
{{- end -}}
{{- if and (dig "keda" "enabled" false $w) (not $.Values.database.kedaKey) -}}
{{- fail (printf "%s: keda needs database.kedaKey" $name) -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.teachers -}}
{{- $p := include "rookery.teacher" (dict "root" $ "item" .) | fromYaml -}}
{{- $names = append $names $p.name -}}
{{- if not $p.model }}{{ fail (printf "teachers.%s has no model" $p.name) }}{{ end -}}
{{- if and (eq $p.engine "openai") (not $p.endpoint.url) -}}
{{- fail (printf "teachers.%s: the engine openai needs endpoint.url" $p.name) -}}
{{- end -}}
{{- if and (ne $p.engine "openai") $p.endpoint.url -}}
{{- fail (printf "teachers.%s: only the engine openai has an endpoint" $p.name) -}}
{{- end -}}
{{- if and (eq $p.engine "openai") $p.chat -}}
{{- fail (printf "teachers.%s: endpoint.api says how an endpoint is asked, not chat" $p.name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.students -}}
{{- $p := include "rookery.student" (dict "root" $ "item" .) | fromYaml -}}
{{- $names = append $names $p.name -}}
{{- if not $p.model }}{{ fail (printf "students.%s has no model" $p.name) }}{{ end -}}
{{- if ne (empty $p.judge.url) (empty $p.judge.model) -}}
{{- fail (printf "students.%s: a judge needs both a URL and a model" $p.name) -}}
{{- end -}}
{{- end -}}
{{- if ne (len $names) (len ($names | uniq)) -}}
{{- fail (printf "two profiles have one name: %s" (join ", " ($names | sortAlpha))) -}}
{{- end -}}
{{- range $name := $names -}}
{{- if gt (len (printf "%s-evaluator-%s" $.Values.fullnameOverride $name)) 63 -}}
{{- fail (printf "%s-evaluator-%s is longer than the 63 characters of a name" $.Values.fullnameOverride $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (eq .Values.coordinator.serviceType "LoadBalancer") -}}
{{- $outside := false -}}
{{- range .Values.networkPolicy.clients -}}
{{- if or (hasKey . "ipBlock") (hasKey . "namespaceSelector") }}{{ $outside = true }}{{ end -}}
{{- end -}}
{{- if not $outside -}}
{{- fail "coordinator.serviceType LoadBalancer: networkPolicy.clients lets in pods of the namespace only; add an ipBlock" -}}
{{- end -}}
{{- end -}}
{{- if has (int .Values.metrics.port) (list 7070 7071 7072 7073 7443) -}}
{{- fail (printf "metrics.port: %d is where a service listens for calls" (int .Values.metrics.port)) -}}
{{- end -}}
{{- if ne (empty .Values.test.teacher) (empty .Values.test.student) -}}
{{- fail "test.teacher and test.student go together" -}}
{{- end -}}
{{- range $profile := compact (list .Values.test.teacher .Values.test.student) -}}
{{- if not (has $profile $names) }}{{ fail (printf "test: there is no profile %s" $profile) }}{{ end -}}
{{- end -}}
{{- end }}
