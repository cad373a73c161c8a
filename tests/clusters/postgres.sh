#!/usr/bin/env bash
# postgres.sh start|stop DIR: a PostgreSQL server that only this machine reaches; DIR/url is what SQLAlchemy opens.
#
# For root on Debian; `start` installs the package where it is missing. The server runs as the user postgres.
set -euo pipefail

action=${1:?start or stop} dir=$(realpath -m "${2:?a folder}")

programs() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }

as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }

start() {
    [ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
    if [ -z "$(programs)" ] || ! id postgres >/dev/null 2>&1; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql
    fi
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    mkdir -p "$dir"
    chmod 755 "$dir"
    install -d -o postgres -g postgres -m 700 "$dir/data"
    cd "$dir"
    as_postgres "$(programs)/initdb" --pgdata="$dir/data" --auth=trust --username=study --encoding=UTF8 >/dev/null
    as_postgres "$(programs)/pg_ctl" start --wait --silent --pgdata="$dir/data" --log="$dir/data/log" \
        --options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories="
    echo "postgresql+psycopg://study@127.0.0.1:$port/postgres" >"$dir/url"
}

stop() {
    [ -f "$dir/data/postmaster.pid" ] || return 0
    cd "$dir"
    as_postgres "$(programs)/pg_ctl" stop --wait --silent --mode=fast --pgdata="$dir/data"
}

case $action in start | stop) $action ;; *) echo "start or stop, not $action" >&2; exit 2 ;; esac
