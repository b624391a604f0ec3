{{- define "ratelimit.name" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "ratelimit.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ratelimit.labels" -}}
{{ include "ratelimit.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ratelimit.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "ratelimit.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "ratelimit.upstream" -}}
{{- if eq .Values.mode "sidecar" -}}
{{- if not .Values.app.containers }}{{ fail "mode sidecar: say the app's containers in app.containers" }}{{ end -}}
{{- if has (int .Values.app.port) (list 8080 9090) }}{{ fail "app.port: 8080 and 9090 are the sidecar's own in the same pod; have the app listen elsewhere" }}{{ end -}}
{{- .Values.upstream | default (printf "http://127.0.0.1:%d" (int .Values.app.port)) }}
{{- else -}}
{{- if .Values.app.containers }}{{ fail "app.containers: only in mode sidecar" }}{{ end -}}
{{- .Values.upstream }}
{{- end }}
{{- end }}

{{- /* The sidecar, as a container of any pod. */}}
{{- define "ratelimit.container" -}}
{{- $host := ternary "::" "0.0.0.0" .Values.ipv6 -}}
{{- $upstream := include "ratelimit.upstream" . -}}
- name: ratelimit
  image: "{{ required "image.repository: say where the image from deploy/Dockerfile is" .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
    - serve
    - "--host={{ $host }}"
    - --port=8080
    {{- with $upstream }}
    - {{ printf "--upstream=%s" . | quote }}
    {{- end }}
    - --workers={{ .Values.workers }}
    - --linger={{ .Values.linger }}
    - --grace={{ .Values.grace }}
    - --access-log=json
    {{- with .Values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - {name: RATELIMIT_CONFIG, value: /etc/ratelimit/ratelimit.toml}
    - {name: RATELIMIT_STORE, value: {{ required "store: say where it counts, as in dynamodb://TABLE?region=REGION" .Values.store | quote }}}
    - {name: RATELIMIT_ADMIN, value: {{ ternary "[::]:9090" "0.0.0.0:9090" .Values.ipv6 | quote }}}
    - name: RATELIMIT_ADMIN_TOKEN
      valueFrom: {secretKeyRef: {name: {{ required "existingSecret: say which Secret has the admin-token" .Values.existingSecret | quote }}, key: admin-token}}
    - name: RATELIMIT_ADMIN_READ_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret | quote }}, key: admin-read-token, optional: {{ not .Values.serviceMonitor.enabled }}}}
    - name: RATELIMIT_API_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret | quote }}, key: api-token, optional: {{ ne $upstream "" }}}}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: http, containerPort: 8080}
    - {name: admin, containerPort: 9090}
  startupProbe:
    httpGet: {path: /health/live, port: admin}
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet: {path: /health/live, port: admin}
    timeoutSeconds: 5
  readinessProbe:
    httpGet: {path: {{ .Values.readinessPath }}, port: admin}
    periodSeconds: 5
    timeoutSeconds: 2
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    readOnlyRootFilesystem: true
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
    - {name: ratelimit-config, mountPath: /etc/ratelimit, readOnly: true}
    - {name: ratelimit-journal, mountPath: /var/lib/ratelimit}
{{- end }}
