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

{{- /* The one that holder.image names, in part or as a whole. Without: the one that is
installed, if it is of the driver's repository, so that an upgrade changes nothing that
helm --wait would wait for in vain; else the driver's. */ -}}
{{- define "erofs-csi.holderImage" -}}
{{- $own := .Values.holder.image -}}
{{- $image := dict "repository" (default .Values.image.repository $own.repository) -}}
{{- if or $own.repository $own.tag $own.digest -}}
{{- $image = merge $image (dict "tag" $own.tag "digest" $own.digest) -}}
{{- include "erofs-csi.image" (list $image .Chart.AppVersion) -}}
{{- else -}}
{{- $image = merge $image (dict "tag" .Values.image.tag "digest" .Values.image.digest) -}}
{{- $name := include "erofs-csi.image" (list $image .Chart.AppVersion) -}}
{{- $installed := lookup "apps/v1" "DaemonSet" .Release.Namespace (printf "%s-holder" (include "erofs-csi.fullname" .)) -}}
{{- range dig "spec" "template" "spec" "containers" list $installed -}}
{{- if and (eq .name "holder") (or (hasPrefix (printf "%s:" $image.repository) .image) (hasPrefix (printf "%s@" $image.repository) .image)) -}}
{{- $name = .image -}}
{{- end -}}
{{- end -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- /* Of the node plugin. Without a holder the mounts of a node end with it. */ -}}
{{- define "erofs-csi.updateStrategy" -}}
{{- if .Values.node.updateStrategy -}}
{{- toYaml .Values.node.updateStrategy -}}
{{- else if .Values.holder.enabled -}}
type: RollingUpdate
rollingUpdate:
  maxUnavailable: 1
{{- else -}}
type: OnDelete
{{- end -}}
{{- end -}}

{{- /* How both commands reach registries: call with (list . "node's hosts directory"). */ -}}
{{- define "erofs-csi.registryArgs" -}}
{{- $registries := (index . 0).Values.registries }}
{{- $args := list }}
{{- range $registries.plainHTTP }}
{{- $args = append $args (printf "--plain-http=%s" .) }}
{{- end }}
{{- if $registries.credentialsSecret }}
{{- $args = append $args "--registry-config=/etc/erofs-csi/credentials/.dockerconfigjson" }}
{{- end }}
{{- if index . 1 }}
{{- $args = append $args (printf "--registry-hosts-dir=%s" (index . 1)) }}
{{- else if $registries.hosts }}
{{- $args = append $args "--registry-hosts-dir=/etc/erofs-csi/hosts" }}
{{- end }}
{{- with $args }}{{ toYaml . }}{{ end }}
{{- end -}}

{{- define "erofs-csi.registryMounts" -}}
{{- $registries := (index . 0).Values.registries }}
{{- if $registries.credentialsSecret }}
- name: credentials
  mountPath: /etc/erofs-csi/credentials
  readOnly: true
{{- end }}
{{- if index . 1 }}
- name: hosts
  mountPath: {{ index . 1 }}
  readOnly: true
{{- else if $registries.hosts }}
- name: hosts
  mountPath: /etc/erofs-csi/hosts
  readOnly: true
{{- end }}
{{- end -}}

{{- define "erofs-csi.registryVolumes" -}}
{{- $root := index . 0 }}
{{- with $root.Values.registries.credentialsSecret }}
# A plugin that could not start would be worse than one without credentials.
- name: credentials
  secret:
    secretName: {{ . }}
    optional: true
{{- end }}
{{- if index . 1 }}
- name: hosts
  hostPath:
    path: {{ index . 1 }}
    type: Directory
{{- else if $root.Values.registries.hosts }}
- name: hosts
  configMap:
    name: {{ include "erofs-csi.fullname" $root }}-registry-hosts
    items:
      {{- range $host, $text := $root.Values.registries.hosts }}
      - key: {{ include "erofs-csi.hostsKey" $host }}
        path: {{ include "erofs-csi.hostsKey" $host }}/hosts.toml
      {{- end }}
{{- end }}
{{- end -}}

{{- /* containerd's name of a registry's directory: a port is between underscores. */ -}}
{{- define "erofs-csi.hostsKey" -}}
{{- if contains ":" . }}{{ . | replace ":" "_" }}_{{ else }}{{ . }}{{ end }}
{{- end -}}
