{{- define "hotswap.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What finds the pods; never changes. */}}
{{- define "hotswap.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hotswap.labels" -}}
{{ include "hotswap.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "hotswap.keys" -}}
{{ default (printf "%s-keys" (include "hotswap.fullname" .)) .Values.keys.existingSecret }}
{{- end -}}

{{- define "hotswap.catalog" -}}
{{ default (printf "%s-catalog" (include "hotswap.fullname" .)) .Values.catalog.existingSecret }}
{{- end -}}

{{/* Servers that share what they serve need a place for it that all of them reach. */}}
{{- define "hotswap.check" -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- if not (or .Values.catalog.url .Values.catalog.existingSecret) -}}
{{- fail "replicas > 1 needs catalog.url (or catalog.existingSecret): servers agree on what is served by their database" -}}
{{- end -}}
{{- if not .Values.artifacts -}}
{{- fail "replicas > 1 needs artifacts (s3://bucket/prefix): each server has to reach the packages" -}}
{{- end -}}
{{- if .Values.persistence.existingClaim -}}
{{- fail "replicas > 1 cannot share persistence.existingClaim: each server keeps a folder of its own" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "hotswap.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .Values.persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .Values.persistence.size }}
{{- end -}}

{{/* Whole numbers reach a template as fractions, which it would write as 3e+06. */}}
{{- define "hotswap.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
