#!/bin/bash
# Caddy 2.11.9, reverse_proxy with round_robin and lb_try_duration, two back ends; seen 2026-11-27.
# One of the two refuses connections, as during a restart. Logins come one after the other.
# Expected: every other login starts at the dead one, waits 250 ms (lb_try_interval) and goes to the live one.
# Seen: once a login has met the dead one, each does. The second attempt takes a turn of the round robin too, so the
# next login starts at the dead one again: all are slow, not half. With fail_duration, off by default, one is.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

GOPATH=$t/go GOBIN=$t GOFLAGS='-modcacherw -trimpath' \
  timeout 900 go install github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9 2>log ||
  { echo "Caddy cannot be had:"; tail -3 log; exit 2; }
read -r dead live p1 p2 < <(python3 -c '
import random, socket
free = []
for port in random.sample(range(15000, 32000), 50):
    try:
        socket.create_server(("127.0.0.1", port)).close()
        free.append(port)
    except OSError:
        pass
print(*free[:4])')
cat >Caddyfile <<CADDY
{
	admin off
	persist_config off
	auto_https off
	storage file_system $t/data
}
http://127.0.0.1:$p1 {
	reverse_proxy 127.0.0.1:$dead 127.0.0.1:$live {
		lb_policy round_robin
		lb_try_duration 3s
	}
}
http://127.0.0.1:$p2 {
	reverse_proxy 127.0.0.1:$dead 127.0.0.1:$live {
		lb_policy round_robin
		lb_try_duration 3s
		fail_duration 30s
	}
}
CADDY
cat >backend.py <<'PY'
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *a):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()
PY
timeout 60 python3 backend.py "$live" &
HOME=$t timeout 60 ./caddy run --config Caddyfile --adapter caddyfile >caddy.log 2>&1 &
up() {
  for _ in $(seq 100); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  echo "nothing listens on port $1"; exit 2
}
up "$live"
up "$p2"

for p in "$p1" "$p2"; do
  for _ in 1 2 3 4 5 6 7 8; do
    curl -s --noproxy '*' -m 20 -o /dev/null -w '%{http_code} after %{time_total} s\n' \
      -d '{"code":"A"}' "http://127.0.0.1:$p/"
  done >"seen.$p"
done
echo "lb_try_duration alone:"; cat "seen.$p1"
echo "with fail_duration 30s:"; cat "seen.$p2"
slow() { grep -c '^200 after 0\.[2-9]' "seen.$1"; }
[ "$(slow "$p1")" -ge 7 ] && [ "$(slow "$p2")" -le 1 ]
