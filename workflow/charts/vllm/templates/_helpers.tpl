{{/* What selects the pods of the server. */}}
{{- define "vllm.selector" -}}
app.kubernetes.io/name: vllm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/* Labels of every object. */}}
{{- define "vllm.labels" -}}
app.kubernetes.io/name: vllm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "vllm.serviceName" -}}
{{ default .Release.Name .Values.serviceName }}
{{- end }}

{{- define "vllm.claim" -}}
{{ default (printf "%s-model" .Release.Name) .Values.extraInit.volume.existingClaim }}
{{- end }}

{{/* NAME@DIGEST where the digest is known, else NAME:TAG. Takes an image. */}}
{{- define "vllm.reference" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ required "image.tag or image.digest must be set" .tag }}{{ end }}
{{- end }}

{{- define "vllm.downloadImage" -}}
{{- $image := .Values.extraInit.modelDownload.image }}
{{- include "vllm.reference" (ternary $image .Values.image (ne $image.repository "")) }}
{{- end }}

{{/* Whether a volume for a model is there at all. */}}
{{- define "vllm.hasModel" -}}
{{- if or .Values.extraInit.modelDownload.enabled .Values.extraInit.volume.existingClaim }}yes{{ end }}
{{- end }}

{{- define "vllm.modelPath" -}}
{{ trimSuffix "/" .Values.extraInit.volume.mountPath }}/{{ required "extraInit.modelDir must be set" .Values.extraInit.modelDir }}
{{- end }}

{{/* No privilege that a server needs none of. */}}
{{- define "vllm.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
{{- end }}

{{- define "vllm.caConfigMap" -}}
{{- if .Values.caBundle.openshift }}{{ .Release.Name }}-ca{{ else }}{{ .Values.caBundle.configMap }}{{ end }}
{{- end }}

{{- define "vllm.caVolume" -}}
{{- with include "vllm.caConfigMap" . }}
- name: ca
  configMap:
    name: {{ . }}
    items:
      - key: {{ $.Values.caBundle.key }}
        path: ca-bundle.crt
{{- end }}
{{- end }}

{{- define "vllm.caMount" -}}
{{- if include "vllm.caConfigMap" . }}
- name: ca
  mountPath: /etc/berth/ca
  readOnly: true
{{- end }}
{{- end }}

{{- define "vllm.caEnv" -}}
{{- if include "vllm.caConfigMap" . }}
{{- range tuple "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" }}
- name: {{ . }}
  value: /etc/berth/ca/ca-bundle.crt
{{- end }}
{{- end }}
{{- end }}

{{/* Which nodes: those with the accelerator that is asked for. */}}
{{- define "vllm.placement" -}}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "vllm.nodeAffinity" -}}
{{- with .Values.gpuModels }}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - key: {{ $.Values.gpuModelLabel }}
            operator: In
            values:
              {{- toYaml . | nindent 14 }}
{{- end }}
{{- end }}

{{/* What every pod of the release has. */}}
{{- define "vllm.podCommon" -}}
automountServiceAccountToken: false
# Kubernetes would set VLLM_PORT to an address for a Service of the name vllm, and vLLM would take it for its port.
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* Where the model comes from and goes to, for the download and for the wait. */}}
{{- define "vllm.modelEnv" -}}
- name: MODEL_DIR
  value: {{ include "vllm.modelPath" . | quote }}
- name: MODEL_REVISION
  value: {{ .Values.extraInit.modelRevision | quote }}
- name: PYTHONUNBUFFERED
  value: "1"
# A container runtime of NVIDIA's passes in every accelerator unless it is told otherwise.
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- end }}

{{/* A probe. Of several nodes only the first has a port, and the others are well as long as they run. */}}
{{- define "vllm.probe" -}}
{{- $probe := .probe }}
{{- if gt (int .root.Values.nodes) 1 }}
exec:
  command:
    - /bin/sh
    - -c
    - >-
      case "$HOSTNAME" in *-0) exec python3 -c "import urllib.request;
      urllib.request.urlopen('http://127.0.0.1:{{ $probe.httpGet.port }}{{ $probe.httpGet.path }}', timeout={{ $probe.timeoutSeconds }})" ;; esac
{{- else }}
httpGet:
  {{- toYaml $probe.httpGet | nindent 2 }}
{{- end }}
{{ toYaml (omit $probe "httpGet") }}
{{- end }}

{{/* The pod of the server, of a Deployment and of a StatefulSet. */}}
{{- define "vllm.pod" -}}
{{- $several := gt (int .Values.nodes) 1 }}
metadata:
  labels:
    {{- include "vllm.labels" . | nindent 4 }}
    app.kubernetes.io/component: server
spec:
  {{- include "vllm.podCommon" . | trim | nindent 2 }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  {{- with include "vllm.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- $affinity := include "vllm.nodeAffinity" . | trim }}
  {{- if or $several $affinity }}
  affinity:
    {{- if $affinity }}
    {{- $affinity | nindent 4 }}
    {{- end }}
    {{- if $several }}
    # The ranks of one node share its accelerators, so that each pod is a node of its own.
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - labelSelector:
            matchLabels:
              {{- include "vllm.selector" . | nindent 14 }}
          topologyKey: kubernetes.io/hostname
    {{- end }}
  {{- end }}
  {{- if .Values.extraInit.modelDownload.enabled }}
  initContainers:
    - name: wait-for-model
      image: {{ include "vllm.downloadImage" . | quote }}
      imagePullPolicy: {{ .Values.extraInit.modelDownload.image.pullPolicy }}
      command: [python3, /berth/model.py, wait]
      env:
        {{- include "vllm.modelEnv" . | nindent 8 }}
      securityContext:
        {{- include "vllm.containerSecurity" . | nindent 8 }}
      resources:
        requests: {cpu: 100m, memory: 128Mi}
        limits: {cpu: 500m, memory: 256Mi}
      volumeMounts:
        - name: model
          mountPath: {{ .Values.extraInit.volume.mountPath }}
          readOnly: true
        - name: scripts
          mountPath: /berth
          readOnly: true
  {{- end }}
  containers:
    - name: vllm
      image: {{ include "vllm.reference" .Values.image | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- with .Values.image.command }}
      command:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        {{- if $several }}
        - name: NODE_ADDRESS
          valueFrom:
            fieldRef:
              fieldPath: status.podIP
        - name: HEAD_ADDRESS
          value: {{ .Release.Name }}-0.{{ .Release.Name }}-nodes.{{ .Release.Namespace }}.svc
        # A pod has one network of this name.
        - name: NODE_INTERFACE
          value: eth0
        {{- end }}
        {{- with .Values.apiKey.existingSecret }}
        - name: {{ $.Values.apiKey.variable }}
          valueFrom:
            secretKeyRef:
              name: {{ . }}
              key: {{ $.Values.apiKey.variable }}
        {{- end }}
        {{- with include "vllm.caEnv" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .Values.image.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: http
          containerPort: {{ .Values.containerPort }}
        {{- if $several }}
        - name: cluster
          containerPort: {{ .Values.clusterPort }}
        {{- end }}
      startupProbe:
        {{- include "vllm.probe" (dict "root" . "probe" .Values.startupProbe) | trim | nindent 8 }}
      readinessProbe:
        {{- include "vllm.probe" (dict "root" . "probe" .Values.readinessProbe) | trim | nindent 8 }}
      livenessProbe:
        {{- include "vllm.probe" (dict "root" . "probe" .Values.livenessProbe) | trim | nindent 8 }}
      {{- if .Values.drainSeconds }}
      lifecycle:
        preStop:
          exec:
            # The first seconds are for what still sends requests here; then requests are counted until there are none.
            command:
              - python3
              - -c
              - |
                {{- .Files.Get "files/drain.py" | nindent 16 }}
              - {{ .Values.drainSeconds | quote }}
              - {{ .Values.containerPort | quote }}
      {{- end }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- if .Values.image.securityContext }}
        {{- toYaml .Values.image.securityContext | nindent 8 }}
        {{- else }}
        {{- include "vllm.containerSecurity" . | nindent 8 }}
        {{- end }}
      volumeMounts:
        {{- if include "vllm.hasModel" . }}
        - name: model
          mountPath: {{ .Values.extraInit.volume.mountPath }}
          readOnly: true
        {{- end }}
        - name: cache
          mountPath: {{ .Values.cache.mountPath }}
        {{- if .Values.shm.enabled }}
        - name: shm
          mountPath: /dev/shm
        {{- end }}
        {{- with include "vllm.caMount" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    {{- if include "vllm.hasModel" . }}
    - name: model
      persistentVolumeClaim:
        claimName: {{ include "vllm.claim" . }}
    {{- end }}
    {{- if .Values.extraInit.modelDownload.enabled }}
    - name: scripts
      configMap:
        name: {{ .Release.Name }}-scripts
    {{- end }}
    - name: cache
      emptyDir: {{ if .Values.cache.size }}{sizeLimit: {{ .Values.cache.size }}}{{ else }}{}{{ end }}
    {{- if .Values.shm.enabled }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.shm.size }}
    {{- end }}
    {{- with include "vllm.caVolume" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}
