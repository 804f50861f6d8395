{{- define "hyper2kvm.name" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "hyper2kvm.namespace" -}}
{{ .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "hyper2kvm.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "hyper2kvm.name" .) }}
{{- else }}{{ required "serviceAccount.name: name the account, which this chart does not create" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- /* A digest says exactly which image; a registry that is set for all charts goes in front. */ -}}
{{- define "hyper2kvm.image" -}}
{{- with .Values.global.imageRegistry | default .Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}
{{- .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* The same of workers that fix guests. */ -}}
{{- define "hyper2kvm.fixer" -}}
{{- with .Values.global.imageRegistry | default .Values.fixer.registry | default .Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}
{{- .Values.fixer.repository }}
{{- if .Values.fixer.digest }}@{{ .Values.fixer.digest }}{{ else }}:{{ .Values.fixer.tag | default .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "hyper2kvm.pullSecrets" -}}
{{- with concat (.Values.global.imagePullSecrets | default list) .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hyper2kvm.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "hyper2kvm.labels" -}}
{{ include "hyper2kvm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}
