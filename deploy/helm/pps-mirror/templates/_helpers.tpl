{{- define "pps-mirror.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "pps-mirror.selector" -}}
app.kubernetes.io/name: pps-mirror
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pps-mirror.labels" -}}
{{ include "pps-mirror.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "pps-mirror.adminSecret" -}}
{{ .Values.admin.existingSecret | default (printf "%s-admin" (include "pps-mirror.name" .)) }}
{{- end }}
