#!/usr/bin/env bash
# Makes what is secret, once: ./secrets.sh HOST [FOLDER]. What is there already stays as it is.
# A certificate of your own: put tls.crt and tls.key into the folder, before or after.
set -euo pipefail
umask 077

host="${1:?the name that people use, such as mlflow.example.com}"
folder="${2:-$(dirname "$0")/secrets}"
[[ "$host" =~ ^[A-Za-z0-9.-]+$ ]] || { echo "error: $host is no host name" >&2; exit 2; }
mkdir -p "$folder"
chmod 700 "$folder"

keep() { # NAME, from stdin; whole or not at all
    if [[ -e "$folder/$1" ]]; then cat >/dev/null; return; fi
    cat >"$folder/.$1.new"
    # Only the owner enters the folder; in a container each file is its reader's alone.
    chmod 444 "$folder/.$1.new"
    mv "$folder/.$1.new" "$folder/$1"
}
random() { openssl rand -base64 33 | tr -d '\n' | tr '+/' '-_'; }
fernet_key() { openssl rand -base64 32 | tr -d '\n' | tr '+/' '-_'; }
of() { cat "$folder/$1"; }

for name in postgres_password storage_key storage_secret admin_password session_key \
    mirror_password grafana_password; do
    random | keep "$name"
done
fernet_key | keep webhook_key
printf '[mlflow]\nmlflow_tracking_username = mirror\nmlflow_tracking_password = %s\n' \
    "$(of mirror_password)" | keep mirror_credentials
printf '{"identities": [{"name": "opusclip", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}\n' \
    "$(of storage_key)" "$(of storage_secret)" | keep storage_identities

if [[ ! -e "$folder/tls.crt" || ! -e "$folder/tls.key" ]]; then
    kind=DNS
    [[ "$host" =~ ^[0-9.]+$ ]] && kind=IP
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
        -subj "/CN=$host" -addext "subjectAltName=$kind:$host" \
        -keyout "$folder/tls.key" -out "$folder/tls.crt" 2>/dev/null
    chmod 444 "$folder/tls.key" "$folder/tls.crt"
    echo "made $folder/tls.crt, signed by nobody: give clients that file, or put a real one there"
fi
echo "secrets are in $folder; admin's password: $folder/admin_password"
