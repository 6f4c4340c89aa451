{{- define "erofs-csi.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- /* Room for "-controller" in the 63 bytes of a label's value. */ -}}
{{- define "erofs-csi.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "erofs-csi.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What never changes; call with (list . "node"). */ -}}
{{- define "erofs-csi.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "erofs-csi.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "erofs-csi.labels" -}}
{{ include "erofs-csi.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
{{- end -}}

{{- /* Call with (list .image "default tag"). */ -}}
{{- define "erofs-csi.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}
{{- end -}}

{{- /* Flags of both commands that reach registries. */ -}}
{{- define "erofs-csi.registryArgs" -}}
{{- $args := list }}
{{- range .Values.registries.plainHTTP }}
{{- $args = append $args (printf "--plain-http=%s" .) }}
{{- end }}
{{- with $args }}{{ toYaml . }}{{ end }}
{{- end -}}
