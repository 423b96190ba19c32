#!/bin/bash
# HAProxy 2.6.12 (Debian 12), roundrobin, no health checks; seen 2026-11-27.
# One of two servers refuses connections, as during a restart. "retries" is 3 by default.
# Expected: a refused connection is tried again on the server that is up, as nginx does.
# Seen: all four attempts go to the same dead server, a second apart. Every other login takes 3 s and gets 503,
# while the other server idles. With "option redispatch" no login is lost, and none waits.
# The manual says so, but only where it describes redispatch, which is off by default.
set -u
t=$(mktemp -d) || exit 2
trap 'jobs -p | xargs -r kill 2>/dev/null; wait; rm -rf "$t"' EXIT
cd "$t" || exit 2

for p in haproxy=2.6.12-1+deb12u4 liblua5.3-0=5.3.6-2 libopentracing-c-wrapper0=1.1.3-3+b1 libopentracing1=1.6.0-4; do
  apt-get download "$p" >/dev/null 2>&1 || { echo "$p cannot be had"; exit 2; }
done
for p in *.deb; do dpkg -x "$p" root; done
LD_LIBRARY_PATH=$(echo root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH

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
cat >haproxy.cfg <<CFG
global
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  balance roundrobin
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen plain
  bind 127.0.0.1:$p1
  server dead 127.0.0.1:$dead
  server live 127.0.0.1:$live
listen redispatch
  bind 127.0.0.1:$p2
  option redispatch
  server dead 127.0.0.1:$dead
  server live 127.0.0.1:$live
CFG
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
timeout 60 root/usr/sbin/haproxy -db -f haproxy.cfg >haproxy.log 2>&1 &
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
  for _ in 1 2 3 4; do
    curl -s --noproxy '*' -m 20 -o /dev/null -w '%{http_code} after %{time_total} s\n' \
      -d '{"code":"A"}' "http://127.0.0.1:$p/"
  done >"seen.$p"
done
echo "by default:"; cat "seen.$p1"
echo "with option redispatch:"; cat "seen.$p2"
echo "log (the number before the last pair counts the retries):"
grep '^127.* plain/dead ' haproxy.log | sed 's/^[^ ]* [^ ]* //'
[ "$(grep -c '^503 after [3-9]' "seen.$p1")" = 2 ] && [ "$(grep -c '^200 after 0' "seen.$p2")" = 4 ]
