{{/* The pod that brings the model from the store onto the volume. */}}
{{- define "vllm.downloadPod" -}}
{{- $s3 := .Values.extraInit.s3 }}
metadata:
  labels:
    app.kubernetes.io/name: vllm
    app.kubernetes.io/instance: {{ .Release.Name }}
    app.kubernetes.io/component: download
spec:
  restartPolicy: OnFailure
  {{- include "vllm.podCommon" . | trim | nindent 2 }}
  {{- with include "vllm.placement" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- $affinity := include "vllm.nodeAffinity" . | trim }}
  {{- $single := eq .Values.extraInit.volume.accessMode "ReadWriteOnce" }}
  {{- if or $affinity $single }}
  affinity:
    {{- if $affinity }}
    {{- $affinity | nindent 4 }}
    {{- end }}
    {{- if $single }}
    # Such a volume is on one node at a time: on another one than the server's, each would wait for the other for ever.
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - labelSelector:
            matchLabels:
              {{- include "vllm.selector" . | nindent 14 }}
          topologyKey: kubernetes.io/hostname
    {{- end }}
  {{- end }}
  containers:
    - name: download
      image: {{ include "vllm.downloadImage" . | quote }}
      imagePullPolicy: {{ .Values.extraInit.modelDownload.image.pullPolicy }}
      command: [python3, /berth/model.py, download]
      env:
        {{- include "vllm.modelEnv" . | nindent 8 }}
        - name: S3_ENDPOINT_URL
          value: {{ required "extraInit.s3.endpointUrl must be set" $s3.endpointUrl | quote }}
        - name: S3_BUCKET_NAME
          value: {{ required "extraInit.s3.bucket must be set" $s3.bucket | quote }}
        - name: S3_PATH
          value: {{ required "extraInit.s3modelpath must be set" .Values.extraInit.s3modelpath | quote }}
        - name: S3_ADDRESSING_STYLE
          value: {{ $s3.addressingStyle | quote }}
        - name: AWS_REGION
          value: {{ $s3.region | quote }}
        {{- range tuple "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
        - name: {{ . }}
          valueFrom:
            secretKeyRef:
              name: {{ required "extraInit.s3.existingSecret must be set" $s3.existingSecret }}
              key: {{ . }}
        {{- end }}
        - name: AWS_SESSION_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ $s3.existingSecret }}
              key: AWS_SESSION_TOKEN
              optional: true
        {{- with include "vllm.caEnv" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with .Values.extraInit.modelDownload.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      securityContext:
        {{- include "vllm.containerSecurity" . | nindent 8 }}
      resources:
        # The page cache of what is written counts too, and gives way.
        requests: {cpu: "1", memory: 1Gi}
        limits: {cpu: "4", memory: 4Gi}
      volumeMounts:
        - name: model
          mountPath: {{ .Values.extraInit.volume.mountPath }}
        - name: scripts
          mountPath: /berth
          readOnly: true
        {{- with include "vllm.caMount" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    - name: model
      persistentVolumeClaim:
        claimName: {{ include "vllm.claim" . }}
    - name: scripts
      configMap:
        name: {{ .Release.Name }}-scripts
    {{- with include "vllm.caVolume" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}
