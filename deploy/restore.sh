#!/usr/bin/env bash
# Brings a backup into empty stores: ./restore.sh FOLDER, with the servers stopped.
# The objects first: no row may name what is not there.
set -euo pipefail
cd "$(dirname "$0")"

folder="$(realpath "${1:?the folder of the backup}")"
[[ -f "$folder/database.dump" ]] || { echo "error: $folder has no database.dump" >&2; exit 2; }
OPUSCLIP_BACKUP_DIR="$folder" OPUSCLIP_UID="$(id -u)" OPUSCLIP_GID="$(id -g)"
export OPUSCLIP_BACKUP_DIR OPUSCLIP_UID OPUSCLIP_GID

docker compose stop nginx mirror server-1 server-2
docker compose up --detach --wait postgres storage
docker compose run --rm bucket
docker compose run --rm objects restore /backup
# One transaction: all of it or, where there are tables already, nothing.
docker compose exec -T postgres pg_restore --username=opusclip --dbname=opusclip --no-owner \
    --single-transaction --exit-on-error <"$folder/database.dump"
docker compose run --rm objects compare /backup
docker compose up --detach --wait
