#!/usr/bin/env bash
# Copies both stores into a folder: ./backup.sh FOLDER. May run while all goes on.
# The database first: whatever its rows name was stored before, so the objects after it hold it.
set -euo pipefail
umask 077
cd "$(dirname "$0")"

folder="$(realpath -m "${1:?the folder for the backup}")"
mkdir -p "$folder"
chmod 700 "$folder"
OPUSCLIP_BACKUP_DIR="$folder" OPUSCLIP_UID="$(id -u)" OPUSCLIP_GID="$(id -g)"
export OPUSCLIP_BACKUP_DIR OPUSCLIP_UID OPUSCLIP_GID

docker compose exec -T postgres pg_dump --username=opusclip --format=custom --no-owner opusclip \
    >"$folder/.database.new"
docker compose exec -T postgres pg_restore --list <"$folder/.database.new" >/dev/null
docker compose run --rm objects copy /backup
mv "$folder/.database.new" "$folder/database.dump"
echo "backup of $(date --utc +%FT%TZ) is in $folder"
